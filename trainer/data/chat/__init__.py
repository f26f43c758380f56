"""Chats: messages of rows, a template that makes a text of them, and the tokens of this text that are to be learnt."""
