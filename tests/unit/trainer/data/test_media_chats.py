"""Tests of conversations with audio clips and images: how messages may hold them, labels, refused rows, and batches."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Audio, Dataset, Features, List, Value
from helpers.media_chats import asked, byte_tokenizer, chatml, gemma3n, qwen2_audio
from trireme.errors import UserError
from trireme.launch.cli import main
from trireme.models.facts import Facts
from trireme.models.loss import IGNORE
from trireme.trainer.data.base_collator import without_targets
from trireme.trainer.data.chat.chat_config import ChatConfig
from trireme.trainer.data.chat.conversation import WITH_MEDIA
from trireme.trainer.data.chat.media import AUDIO, IMAGE, Kind
from trireme.trainer.data.chat.media_chat_rows import ImageChats, MultimodalChats
from trireme.trainer.data.chat.media_encoder import MediaEncoder, kinds_of, longest_clip
from trireme.trainer.data.chat.media_forms import FOLDER
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.media_collator import MediaCollator
from trireme.trainer.data.nested_cells import kept_text
from trireme.trainer.data.prepare_rows import row_hashes, without_decoding
from trireme.trainer.data.row_source import RowSource
from trireme.trainer.data.samples import Given
from trireme.trainer.tasks.multimodal_chat import MultimodalChat

soundfile = pytest.importorskip("soundfile")
Image = pytest.importorskip("PIL.Image")
RATE = 16_000


def noise(length: int = 4000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, length).astype(np.float32)


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def clip(length: int = 4000, seed: int = 0) -> dict[str, Any]:
    return {"type": "audio", "array": noise(length, seed), "sampling_rate": RATE}


def encoder(processor: Any, *media: Kind, longest: int = 200, **chat: Any) -> MediaEncoder:
    processor.tokenizer.chat_template = processor.tokenizer.chat_template or processor.chat_template
    return MediaEncoder(processor, ChatConfig(**chat), longest, media)


def row_of(*media: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": asked("What?", "This.", *media), **columns}


def test_forms_of_audio_are_the_same_clip(tmp_path: Path) -> None:
    processor, file = qwen2_audio(), tmp_path / "a.wav"
    reader = encoder(processor, AUDIO)
    file.write_bytes(wav(noise()))
    (tmp_path / "stereo.wav").write_bytes(wav(np.stack([noise(), noise()], 1)))
    (tmp_path / "a b.wav").write_bytes(file.read_bytes())
    coded = base64.b64encode(file.read_bytes()).decode()
    forms: list[dict[str, Any]] = [
        {"type": "audio", "audio": str(file)},
        {"type": "Audio", "path": str(tmp_path / "stereo.wav")},
        {"type": "audio", "url": f"file://{file}"},
        {"type": "audio_url", "audio_url": {"url": str(file)}},
        {"audio": {"bytes": wav(noise()), "path": None}},
        {"type": "audio", "audio": {"array": noise().tolist(), "sampling_rate": RATE}},
        {"type": "audio", "audio": noise(), "sampling_rate": RATE},
        {"type": "audio", "url": (tmp_path / "a b.wav").as_uri()},
        {"type": "input_audio", "input_audio": {"data": coded, "format": "wav"}},
        {"type": "audio", "audio": f"data:audio/wav;base64,{coded}"},
        {"type": "audio", "base64": coded},
        {"type": "audio", "source": {"type": "base64", "media_type": "audio/wav", "data": coded}},
        clip(),
    ]
    rows = [row_of(form) for form in forms]
    rows += [row_of({"type": "audio"}, audios=[str(file)]), row_of({"type": "audio"}, audios={"bytes": wav(noise())})]
    rows.append({**row_of(), "messages": json.dumps(asked("What?", "This.", forms[0]))})
    first = reader(rows[0])
    for row in rows:
        assert np.array_equal(reader(row).input_ids, first.input_ids)
        assert np.allclose(reader.opened(row)[AUDIO][0], noise(), atol=1e-6)
    (slow,) = reader.opened(row_of({"type": "audio", "audio": {"bytes": wav(noise(2000), RATE // 2)}}))[AUDIO]
    assert len(slow) == 4000


@pytest.mark.parametrize("content", ["<audio>\nWhat?", "What?\n<audio>", "<audio>What?", "What?"])
def test_columns_fill_texts_of_llava_and_trl(content: str, tmp_path: Path) -> None:
    """A text ``<audio>`` stands for the item of the column, and without one the item stands before the question."""
    (tmp_path / "a.wav").write_bytes(wav(noise()))
    reader, before = encoder(qwen2_audio(), AUDIO), not content.startswith("What?\n")
    parts = [{"type": "audio"}, {"type": "text", "text": "What?"}]
    asks = {"role": "user", "content": parts if before else parts[::-1]}
    said = {"role": "assistant", "content": [{"type": "text", "text": "This."}]}
    clips = {"audios": [str(tmp_path / "a.wav")]}
    turns = [{"from": "human", "value": content}, {"from": "gpt", "value": "This."}]
    expected = reader({"messages": [asks, said], **clips}).input_ids
    assert np.array_equal(reader({"conversations": turns, **clips}).input_ids, expected)
    kept = {"conversations": kept_text(turns), "audios": kept_text(clips["audios"])}
    assert np.array_equal(reader(kept).input_ids, expected)


def test_relative_paths_begin_in_the_folder_of_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the same name in two folders are told apart; other paths are looked for in the working folder."""
    for number, name in enumerate(("train", "more")):
        (tmp_path / name / "clips").mkdir(parents=True)
        (tmp_path / name / "clips" / "a.wav").write_bytes(wav(noise(4000, number)))
        line = json.dumps(row_of({"type": "audio", "path": "clips/a.wav"}))
        (tmp_path / name / "chats.jsonl").write_text(line + "\n")
    paths = [f"{tmp_path}/{name}/chats.jsonl" for name in ("train", "more")]
    reader = encoder(qwen2_audio(), AUDIO)
    for nested in ("text", "columns"):
        component = {"_target_": "trireme.trainer.data.row_files.RowFiles", "paths": paths, "nested": nested}
        rows = RowSource(component).rows_of(str(tmp_path), WITH_MEDIA, {})
        for number, row in enumerate(rows):
            assert np.allclose(reader.opened(row)[AUDIO][0], noise(4000, number), atol=1e-6)
    with pytest.raises(ValueError, match=f"there is no file clips/a.wav in {tmp_path}"):
        encoder(qwen2_audio(), AUDIO, media_folder=str(tmp_path)).opened(dict(rows[0]))
    monkeypatch.chdir(tmp_path / "more")
    found = encoder(qwen2_audio(), AUDIO, media_folder=str(tmp_path)).opened(dict(rows[0]))
    assert np.allclose(found[AUDIO][0], noise(4000, 1), atol=1e-6)


def test_a_column_of_one_clip_for_each_row_is_read(tmp_path: Path) -> None:
    line = {"conversations": [{"from": "human", "value": "<audio>What?"}, {"from": "gpt", "value": "This."}]}
    (tmp_path / "chats.json").write_text(json.dumps([{**line, "audio": "a.wav", "id": 1}]))
    (tmp_path / "a.wav").write_bytes(wav(noise()))
    component = {"_target_": "trireme.trainer.data.row_files.RowFiles", "paths": f"{tmp_path}/chats.json"}
    (row,) = RowSource({**component, "nested": "text"}).rows_of(str(tmp_path), WITH_MEDIA, {})
    assert np.allclose(encoder(qwen2_audio(), AUDIO).opened(row)[AUDIO][0], noise(), atol=1e-6)


def test_a_folder_counts_only_for_paths_in_it(tmp_path: Path) -> None:
    """Equal relative paths in two folders are different files, so their rows do not repeat each other."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.wav").touch()
    folders = [str(tmp_path / name) for name in ("a", "b")]
    for path, different in (("1.wav", 2), ("2.wav", 1), (str(tmp_path / "a" / "1.wav"), 1)):
        cells = kept_text(asked("What?", "This.", {"type": "audio", "path": path}))
        rows = Dataset.from_list([{"messages": cells, FOLDER: folder} for folder in folders])
        assert len({*row_hashes(rows, folders)}) == different and len({*row_hashes(rows)}) == 1


@pytest.mark.parametrize("loss", ["assistant", "last", "all"])
def test_no_token_of_a_clip_has_a_label(loss: str) -> None:
    reader = encoder(qwen2_audio(), AUDIO, longest=400, loss=loss)
    row = {"messages": [*asked("A?", "One.", clip(), clip(9000)), *asked("B?", "Two.", clip(16_000))]}
    found, tokenizer = reader(row), reader.processor.tokenizer
    of_clips = found.input_ids == 3
    assert of_clips.sum() == 6 + 14 + 25 and (found.labels[of_clips] == IGNORE).all()
    learnt = tokenizer.decode(found.labels[found.labels != IGNORE])
    if loss != "all":
        assert learnt == {"assistant": "One.<|im_end|>Two.<|im_end|>", "last": "Two.<|im_end|>"}[loss]
    else:
        assert (found.labels[~of_clips] != IGNORE).all()
    assert all(tokenizer.decode(found.input_ids[stop]) == "<|im_end|>" for stop in found.stops) and found.stops


def test_images_and_clips_stand_beside_each_other(tmp_path: Path) -> None:
    processor = gemma3n()
    reader = encoder(processor, IMAGE, AUDIO)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    image = {"type": "image", "path": str(tmp_path / "a.png")}
    row = {"messages": [*asked("A?", "One.", image, clip()), *asked("B?", "Two.", clip(), image)]}
    found = reader(row)
    assert processor.tokenizer.decode(found.labels[found.labels != IGNORE]) == "One.<|im_end|>Two.<|im_end|>"
    arrays = reader.arrays(reader.opened(row), found.input_ids)
    assert arrays["pixel_values"].shape == (2, 3, 16, 16) and arrays["input_features"].shape[0] == 2
    tokens = {kind: processor.tokenizer.convert_tokens_to_ids(f"<{kind}>") for kind in ("image", "audio")}
    kinds = np.where(found.input_ids == tokens["image"], 1, np.where(found.input_ids == tokens["audio"], 3, 0))
    assert np.array_equal(arrays["token_type_ids"], kinds) and (kinds == 1).sum() == 6 and (kinds == 3).sum() == 10


@pytest.mark.parametrize(
    ("parts", "columns", "why"),
    [
        ([], {}, "it has no audio clip, and every row needs one"),
        (
            [{"type": "audio"}],
            {},
            "its messages have 1 part for audio clips without a file, and the column audios holds none",
        ),
        ([clip()], {"audios": ["b.wav"]}, "no parts for audio clips without a file, and .* audios holds 1 audio clip"),
        ([{"type": "audio", "path": "nowhere.wav"}], {}, "there is no file nowhere.wav in "),
        ([{"type": "audio", "audio": {"bytes": b"no audio"}}], {}, "its audio cannot be read"),
        ([{"type": "audio", "audio": {"sampling_rate": 1}}], {}, "1 part for audio clips without a file"),
        (
            [{"type": "audio", "file": "a.wav"}],
            {},
            "message 1 has an audio clip under file, which is none of audio, path",
        ),
        ([{"type": "audio", "url": "https://a.b/c.wav"}], {}, "'https://a.b/c.wav' is an address on the net"),
        (
            [{"type": "input_audio", "input_audio": {"data": "A", "format": "wav"}}],
            {},
            "neither a path nor valid base64",
        ),
        ([{"type": "audio", "audio": [0.0, 0.1]}], {}, "the sampling rate 0"),
        ([{"type": "audio", "array": [[0.0], [0.1, 0.2]], "sampling_rate": RATE}], {}, "something else than numbers"),
        ([clip(0)], {}, "its audio is empty"),
        ([clip(200)], {}, "stands for no token"),
        ([clip(16_001)], {}, r"its audio of 1.0 s is longer than the 1 s that fit"),
        ([clip(16_000), clip(16_000)], {}, "its audio clips end at token 57, beyond data.block_size=50"),
        ([clip(), {"type": "image", "path": "a.png"}], {}, "holds image, and only texts and audio clips are read"),
        ([clip(), {"type": "video", "path": "a.mp4"}], {}, "holds video, and only texts and audio clips are read"),
        ([clip(), {"type": "text", "text": "<audio>"}], {}, "hold 1 audio clip, and the template shows 2"),
    ],
)
def test_rows_that_cannot_be_learnt(parts: list[Any], columns: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        encoder(qwen2_audio(), AUDIO, longest=50)(row_of(*parts, **columns))


def test_the_longest_uncut_clip_is_known() -> None:
    from transformers import AudioFlamingo3Processor, Qwen3ASRFeatureExtractor, WhisperFeatureExtractor

    windows = AudioFlamingo3Processor(
        WhisperFeatureExtractor(feature_size=16, chunk_length=2), byte_tokenizer("<sound>"), max_audio_len=5
    )
    processor = qwen2_audio()
    assert longest_clip(windows) == 4 * RATE and longest_clip(processor) == RATE
    assert longest_clip(gemma3n()) == 30 * RATE
    processor.feature_extractor = Qwen3ASRFeatureExtractor(feature_size=16)
    assert longest_clip(processor) is None
    assert kinds_of(gemma3n()) == (IMAGE, AUDIO) and kinds_of(qwen2_audio()) == (AUDIO,)
    assert kinds_of(byte_tokenizer()) == ()


def given(tmp_path: Path, rows: list[dict[str, Any]], processor: Any, **options: Any) -> Given:
    processor.save_pretrained(tmp_path / "processor")
    chat = ChatConfig(**options)
    config = DataConfig(source={}, chat=chat, block_size=100, processor=str(tmp_path / "processor"), packing=False)
    texts = [{**row, "messages": json.dumps(row["messages"])} for row in rows]
    return Given(config, Dataset.from_list(texts), tmp_path / "cache", "print", None, None)


def stored(tmp_path: Path, number: int, length: int = 4000) -> dict[str, Any]:
    file = tmp_path / f"{number}.wav"
    file.write_bytes(wav(noise(length, number)))
    return {"type": "audio", "path": str(file)}


def test_unusable_clips_are_reasons_of_their_rows(tmp_path: Path) -> None:
    rows = [row_of(stored(tmp_path, number)) for number in range(3)]
    rows += [row_of(stored(tmp_path, 3, 20_000)), row_of({"type": "audio", "path": "gone.wav"}), row_of()]
    use = given(tmp_path, rows, qwen2_audio(), unusable="leave_out")
    samples = MultimodalChats(use)
    made = samples.made(use.rows, "train", "data.source")
    assert len(made.rows) == 3 and made.lengths is not None
    (note,) = (note for note in made.notes if "left out" in note)
    assert note.startswith("left out 3 of 6 rows") and "longer than" in note and "it has no audio clip" in note
    sample = samples.sample(made.rows[0])
    assert sample["input_features"].shape == (1, 16, 100) and len(sample["input_ids"]) == made.lengths[0]
    strict = MultimodalChats(given(tmp_path, rows, qwen2_audio()))
    with pytest.raises(UserError, match=r"(?s)3 of 6 train rows are not usable.*row 4 of the train rows is"):
        strict.made(use.rows, "train", "data.source")


def test_a_template_and_a_processor_are_needed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    processor = gemma3n()
    processor.chat_template = None
    with pytest.raises(
        UserError, match=r"(?s)data\.chat\.template\n.*each image as <image> and each audio clip as <audio>"
    ):
        MultimodalChats(given(tmp_path, [row_of(stored(tmp_path, 0))], processor))
    bare = replace(given(tmp_path, [row_of(stored(tmp_path, 0))], processor), weights=tmp_path / "none")
    with pytest.raises(UserError, match=r"data\.processor\n.*only a processor of the model"):
        MultimodalChats(replace(bare, config=replace(bare.config, processor=None)))
    assert "one is made" not in caplog.text


def test_every_row_has_the_kinds_of_the_first(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    image = {"type": "image", "path": str(tmp_path / "a.png")}
    for media, other in ((image, stored(tmp_path, 0)), (stored(tmp_path, 0), image)):
        samples = MultimodalChats(given(tmp_path, [row_of(), row_of(media), row_of(other)], gemma3n()))
        assert [kind.name for kind in samples.encoder.media] == [media["type"]]
        with pytest.raises(ValueError, match=f"holds {other['type']}, and only texts and"):
            samples.encoder(row_of(media, other))
    samples = MultimodalChats(given(tmp_path, [row_of(media, other)], gemma3n()))
    assert samples.encoder.media == (IMAGE, AUDIO)
    images = ImageChats(given(tmp_path, [row_of(media, other)], gemma3n()))
    assert images.encoder.media == (IMAGE,)
    with pytest.raises(UserError, match="puts no images among tokens"):
        ImageChats(given(tmp_path / "other", [row_of(image)], qwen2_audio()))


def test_clips_of_several_lengths_and_types_of_tokens_are_padded() -> None:
    reader, samples = encoder(gemma3n(), AUDIO), list[dict[str, Any]]()
    for number, length in enumerate((8000, 3000)):
        row = row_of(clip(length))
        found = reader(row)
        arrays = reader.arrays(reader.opened(row), found.input_ids)
        samples.append({"input_ids": found.input_ids, "labels": found.labels, "index": number, **arrays})
    micro = MediaCollator(200, 0, 2).micro_batch(samples)
    frames, mask = micro.inputs["input_features"], micro.inputs["input_features_mask"]
    assert frames.shape[:2] == mask.shape and not mask[1, len(samples[1]["input_features_mask"][0]) :].any()
    assert torch.equal(mask.sum(1), torch.tensor([int(sample["input_features_mask"].sum()) for sample in samples]))
    assert micro.inputs["token_type_ids"].shape == micro.inputs["input_ids"].shape
    more = {**samples[0], "input_features": np.concatenate([samples[0]["input_features"]] * 2)}
    said = r"(?s)sizes in one batch: input_features of the samples 1 and 5 of their set.*\[1, .*\] and \[2, .*size=1"
    with pytest.raises(UserError, match=said):
        MediaCollator(200, 0, 2).micro_batch([samples[0], {**more, "index": 4}])


def test_answers_are_written_with_the_clips_before_them() -> None:
    """A row that only fills a place has no labels, but its clips are among the inputs."""
    processor = gemma3n()
    reader, task = encoder(processor, AUDIO), MultimodalChat()
    task.configure(processor, Facts())
    samples = []
    for number, row in enumerate((row_of(clip()), {"messages": [*asked("A?", "No.", clip()), *asked("B?", "Yes.")]})):
        found = reader(row)
        arrays = reader.arrays(reader.opened(row), found.input_ids)
        samples.append({"input_ids": found.input_ids, "labels": found.labels, "index": number, **arrays})
    micro = without_targets(MediaCollator(200, 0, 2).micro_batch(samples), 1)
    prompt, token = task.prompt(micro.inputs, micro.targets), reader.processor.audio_token_id
    assert prompt.keys() == micro.inputs.keys() and prompt["token_type_ids"].shape == prompt["input_ids"].shape
    assert torch.equal(prompt["token_type_ids"] == 3, prompt["input_ids"] == token)
    first = prompt["input_ids"][0][prompt["attention_mask"][0] != 0]
    assert processor.tokenizer.decode(first).endswith("What?<|im_end|>\n<|im_start|>assistant\n")
    late = {"messages": [*asked("A?", "No.", clip()), *asked("B?", "Yes.", clip())]}
    found = reader(late)
    sample = {"input_ids": found.input_ids, "labels": found.labels, "index": 0}
    micro = MediaCollator(200, 0, 1).micro_batch([sample])
    with pytest.raises(UserError, match="images or audio clips stand behind it"):
        task.prompt(micro.inputs, micro.targets)


def test_nested_clips_stay_as_stored() -> None:
    """``datasets`` would decode nested clips too when a row is read."""
    part = {"type": Value("string"), "audio": Audio(), "text": Value("string")}
    features = Features(audios=List(Audio()), messages=List({"role": Value("string"), "content": List(part)}))
    bytes_of = {"bytes": wav(noise()), "path": "a.wav"}
    content = [{"type": "audio", "audio": bytes_of, "text": ""}]
    row = {"audios": [bytes_of], "messages": [{"role": "user", "content": content}]}
    data = Dataset.from_list([row]).cast(features)
    data = without_decoding(data)
    assert data[0]["audios"][0]["bytes"] == data[0]["messages"][0]["content"][0]["audio"]["bytes"] == bytes_of["bytes"]
    assert len(row_hashes(data)) == 1


@pytest.mark.parametrize(
    ("part", "task", "words"),
    [
        ({"type": "video", "path": "a.mp4"}, "multimodal_chat", "only texts, images and audio clips are read"),
        ({"type": "audio", "path": "a.wav"}, "image_chat", "holds audio, and only texts and images are read"),
    ],
)
def test_the_check_refuses_other_parts(
    part: dict[str, Any], task: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qwen2_audio().save_pretrained(tmp_path / "processor")
    (tmp_path / "chats.jsonl").write_text(json.dumps(row_of(part)) + "\n")
    (tmp_path / "recipe.yaml").write_text(
        f"# Reads audio.\n# trireme train recipe.yaml\ndefaults: [/base, /data: chat, override /task: {task}, _self_]\n"
        "model: {family: auto, config: {model_type: qwen2_audio}}\n"
        f"data: {{source: {{paths: [{tmp_path}/chats.jsonl]}}, processor: {tmp_path}/processor, packing: false}}\n"
        "trainer: {max_steps: 1}\n"
    )
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_templates_of_texts_alone_refuse_clips() -> None:
    processor = qwen2_audio()
    processor.tokenizer.chat_template = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
        "{% endfor %}"
    )
    with pytest.raises(ValueError, match="message 1 holds an audio clip, and the template takes texts alone"):
        encoder(processor, AUDIO)(row_of(clip()))
    assert "<audio>" in chatml("audio")
