"""Training on chats: reading messages, rendering them by a chat template, and choosing the tokens that have labels."""
