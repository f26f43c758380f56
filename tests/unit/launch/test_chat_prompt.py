"""``trireme generate --chat`` formats prompts, images, audio clips and conversation files by the chat template, or
refuses them.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from helpers.chats import TOOLS, answer, small_tokenizer, tokenizer_for, user
from helpers.media_chats import qwen2_audio
from trireme.errors import UserError
from trireme.launch.chat_prompt import chat_inputs, chat_prompt, media_inputs, stops, trained_chat
from trireme.launch.cli import main
from trireme.trainer.data.chat.chat_config import ChatConfig
from trireme.trainer.data.chat.media import AUDIO
from trireme.trainer.data.chat.media_encoder import MediaEncoder

BEGUN = [user("вопрос"), answer("It is")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(BEGUN))
    return path


def text_of(prompt: Any, name: str = "chatml") -> str:
    tokenizer = tokenizer_for(name)
    return tokenizer.decode(chat_inputs(tokenizer, prompt)["input_ids"][0])


def test_a_prompt_is_a_message_of_the_user() -> None:
    found = chat_prompt(None, "вопрос", "σύστημα")
    turns = [f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in (("system", "σύστημα"), ("user", "вопрос"))]
    assert text_of(found) == "".join(turns) + "<|im_start|>assistant\n"
    assert found.begun == ""


def test_a_last_message_of_the_assistant_is_gone_on_with(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = chat_prompt(str(file), None)
    assert text_of(found).endswith("<|im_start|>assistant\nIt is") and found.begun == "It is"
    assert text_of(chat_prompt(str(file), None, generation_prompt=True)).endswith(
        "It is<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text_of(chat_prompt(str(file), "ещё")).endswith("ещё<|im_end|>\n<|im_start|>assistant\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"messages": BEGUN, "tools": TOOLS})))
    with_tools = chat_prompt("-", "погода?")
    assert text_of(with_tools, "qwen2_5").count("weather") == 1
    said = chat_prompt(None, "It is", continue_final_message=True)
    assert text_of(said).endswith("<|im_start|>user\nIt is")


def test_an_answer_ends_with_its_turn() -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[3, 5]))
    tokenizer = tokenizer_for("gemma")
    ends = tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    assert stops(tokenizer, model) == sorted({3, 5, *ends})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "is not valid JSON"),
        ("3", "holds int, not messages"),
        ('[{"content": "a"}]', "is not a conversation: message 1 has no role"),
        ('[{"role": "user"}]', "is not a conversation: message 1 has no content; it has role"),
        ('[{"role": "user", "content": null}]', "message 1 has no content"),
        ('[{"role": "user", "value": "a"}]', "message 1 has no content; it has role, value"),
        ("[]", "needs a message to answer"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "chat.json"
    path.write_text(content)
    with pytest.raises(UserError, match=why):
        chat_prompt(str(path), None)


def test_templates_that_are_not_there_or_refuse() -> None:
    with pytest.raises(UserError, match="has no chat template"):
        chat_inputs(small_tokenizer(), chat_prompt(None, "a"))
    with pytest.raises(UserError, match="System role not supported"):
        chat_inputs(tokenizer_for("gemma"), chat_prompt(None, "a", "b"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--chat", "--prompt", "a", "--continue-final-message", "--add-generation-prompt"], "leave one of them out"),
        (["--chat"], "needs a message to answer"),
        (["--chat", "--prompt", ""], "is empty"),
        (["--chat", "missing.json"], "cannot be read: No such file"),
        (["--prompt", "a", "--system", "b"], "is only for conversations"),
        ([], "is required: how the text begins"),
    ],
)
def test_options_that_are_refused(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "folder", *options]) == 2
    assert told in capsys.readouterr().err


@pytest.fixture
def image_file(tmp_path: Path) -> str:
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def test_images_stand_before_the_prompt(image_file: str) -> None:
    found = chat_prompt(None, "What?", images=[image_file, image_file])
    kinds = [part["type"] for part in found.conversation.messages[-1]["content"]]
    assert kinds == ["image", "image", "text"] and len(found.images) == 2
    assert found.images[0].getpixel((0, 0)) == (255, 0, 0)


def test_images_fill_the_places_that_messages_leave(image_file: str, tmp_path: Path) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}, {"type": "image", "path": image_file}]
    (tmp_path / "chat.json").write_text(json.dumps([{"role": "user", "content": parts}]))
    assert len(chat_prompt(str(tmp_path / "chat.json"), None, images=[image_file]).images) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "What?", "--image", "nowhere.png"], ("--image", "there is no file")),
        (["named.json", "--image", "red.png"], ("--image", "no parts for images without a file")),
        (["unnamed.json"], ("--chat", "1 part for images without a file")),
        (["net.json"], ("--chat", "is an address on the net")),
        (["--prompt", "What?", "--image", "chat.json"], ("--image", "of no format that Pillow reads")),
    ],
)
def test_wrong_images_are_refused(
    arguments: list[str],
    words: tuple[str, str],
    file: Path,
    image_file: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(file.parent)
    for name, part in {
        "unnamed": {"type": "image"},
        "net": {"type": "image", "url": "https://a.b/c.png"},
        "named": {"type": "image", "path": "red.png"},
    }.items():
        message = {"role": "user", "content": [part, {"type": "text", "text": "What?"}]}
        Path(f"{name}.json").write_text(json.dumps([message]))
    assert main(["generate", str(file.parent), "--chat", *arguments]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words) and "Traceback" not in message, message


@pytest.fixture
def clip(tmp_path: Path) -> str:
    pytest.importorskip("soundfile").write(tmp_path / "a.wav", [0.0, 0.5, -0.5, 0.25], 8000)
    return str(tmp_path / "a.wav")


def test_clips_and_images_stand_before_the_prompt(image_file: str, clip: str) -> None:
    found = chat_prompt(None, "What?", images=[image_file], audio=[clip, clip])
    kinds = [part["type"] for part in found.conversation.messages[-1]["content"]]
    assert kinds == ["image", "audio", "audio", "text"] and len(found.images) == 1
    assert [len(one["array"]) for one in found.audio] == [4, 4] and found.audio[0]["sampling_rate"] == 8000
    assert [kind.name for kind in found.media] == ["image", "audio"]


def test_clips_take_the_places_that_messages_leave(clip: str, tmp_path: Path) -> None:
    parts = [{"type": "audio"}, {"type": "text", "text": "What?"}, {"type": "audio", "path": clip}]
    (tmp_path / "chat.json").write_text(json.dumps([{"role": "user", "content": parts}]))
    assert len(chat_prompt(str(tmp_path / "chat.json"), None, audio=[clip]).audio) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "What?", "--audio", "nowhere.wav"], ("--audio", "there is no file")),
        (["named.json", "--audio", "a.wav"], ("--audio", "no parts for audio clips without a file")),
        (["unnamed.json"], ("--chat", "1 part for audio clips without a file")),
        (["net.json"], ("--chat", "is an address on the net")),
    ],
)
def test_clips_that_are_not_there(
    arguments: list[str],
    words: tuple[str, str],
    file: Path,
    clip: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(file.parent)
    for name, part in {
        "unnamed": {"type": "audio"},
        "net": {"type": "audio", "audio": "https://a.b/c.wav"},
        "named": {"type": "audio", "path": "a.wav"},
    }.items():
        message = {"role": "user", "content": [part, {"type": "text", "text": "What?"}]}
        Path(f"{name}.json").write_text(json.dumps([message]))
    assert main(["generate", str(file.parent), "--chat", *arguments]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words) and "Traceback" not in message, message


def test_clips_become_tokens_as_in_training(clip: str, tmp_path: Path) -> None:
    processor, model = qwen2_audio(), SimpleNamespace(forward=lambda input_ids: None)
    processor.tokenizer.chat_template = processor.chat_template
    stored = {"type": "audio", "array": [0.1] * 4000, "sampling_rate": 16_000}
    messages = [{"role": "user", "content": [stored, {"type": "text", "text": "What?"}]}]
    (tmp_path / "chat.json").write_text(json.dumps(messages))
    made = media_inputs(processor, model, chat_prompt(str(tmp_path / "chat.json"), None))
    found = MediaEncoder(processor, ChatConfig(), 100, [AUDIO])({"messages": [*messages, answer("This.")]})
    begun = made["input_ids"][0].tolist()
    assert begun == found.input_ids[: len(begun)].tolist() and begun.count(3) == 6
    messages[0]["content"].append({"type": "video", "path": "a.mp4"})
    (tmp_path / "chat.json").write_text(json.dumps(messages))
    with pytest.raises(UserError, match="holds video, and only texts, images and audio clips are read"):
        media_inputs(processor, model, chat_prompt(str(tmp_path / "chat.json"), None))
    with pytest.raises(UserError, match="stands for no token"):
        media_inputs(processor, model, chat_prompt(None, "What?", audio=[clip]))


def test_parts_that_no_model_reads_are_refused(tmp_path: Path) -> None:
    """Without images beside it, a video was left out in silence."""
    content = [{"type": "video", "path": "a.mp4"}, {"type": "text", "text": "What?"}]
    (tmp_path / "chat.json").write_text(json.dumps([{"role": "user", "content": content}]))
    with pytest.raises(UserError, match="message 1 holds video, and only texts, images and audio clips are read"):
        chat_prompt(str(tmp_path / "chat.json"), None)


def test_paths_in_a_file_begin_in_its_folder(image_file: str, tmp_path: Path) -> None:
    content = [{"type": "image", "path": "red.png"}, {"type": "text", "text": "What?"}]
    (tmp_path / "chat.json").write_text(json.dumps([{"role": "user", "content": content}]))
    assert len(chat_prompt(str(tmp_path / "chat.json"), None).images) == 1


def test_a_prompt_goes_on_with_turns_of_sharegpt(tmp_path: Path) -> None:
    """The prompt is added to the turns; as a column of its own it would replace them."""
    turns = [{"from": "human", "value": "one"}, {"from": "gpt", "value": "two"}]
    (tmp_path / "turns.json").write_text(json.dumps({"conversations": turns}))
    found = chat_prompt(str(tmp_path / "turns.json"), "three")
    assert [message["content"] for message in found.conversation.messages] == ["one", "two", "three"]


def test_a_template_of_parts_gets_parts() -> None:
    """A template that loops over parts would loop over the characters of a plain text, and write nothing."""
    tokenizer = tokenizer_for("chatml")
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
    )
    found = chat_inputs(tokenizer, chat_prompt(None, "вопрос"))["input_ids"][0]
    assert "вопрос" in tokenizer.decode(found)


def test_a_run_is_asked_as_it_was_trained(tmp_path: Path) -> None:
    chat = {"system": "σύστημα", "tools": TOOLS, "template_args": {"mood": "x"}, "role_names": {"капитан": "user"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"data": {"chat": chat}}))
    trained = trained_chat(str(tmp_path))
    found = chat_prompt(None, "вопрос", trained=trained)
    assert found.conversation.messages[0]["content"] == "σύστημα"
    assert found.conversation.tools == TOOLS and found.conversation.template_args == {"mood": "x"}
    assert chat_prompt(None, "вопрос", "другая", trained=trained).conversation.messages[0]["content"] == "другая"
    assert chat_prompt(None, "вопрос", "", trained=trained).conversation.messages[0]["role"] == "user"
    row = {"messages": [{"role": "капитан", "content": "вопрос"}], "tools": [], "template_args": {"mood": "y"}}
    (tmp_path / "row.json").write_text(json.dumps(row))
    found = chat_prompt(str(tmp_path / "row.json"), None, trained=trained)
    assert found.conversation.messages[-1]["role"] == "user" and found.conversation.template_args == {"mood": "y"}


def test_an_export_tells_nothing_of_its_training(tmp_path: Path) -> None:
    assert trained_chat(str(tmp_path)) is None
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"data": {"source": {}}}))
    assert trained_chat(str(tmp_path)) is None
