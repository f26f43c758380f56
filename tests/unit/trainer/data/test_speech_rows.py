"""Tests of speech data: decoding, folders with metadata, transcripts as characters, frame counts, and SpecAugment."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from transformers import AutoModelForCTC, Wav2Vec2Config
from trireme.errors import UserError
from trireme.trainer.data.audio import seconds, waveform
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.row_files import Folder
from trireme.trainer.data.samples import Given
from trireme.trainer.data.speech_collator import SpeechCollator
from trireme.trainer.data.speech_rows import LabelledAudio, TranscribedSpeech
from trireme.trainer.data.tokenizer import TokenizerConfig
from trireme.trainer.data.waveform_frames import output_frames

RATE = 8000
SIZES = {
    "conv_dim": [8, 8],
    "conv_stride": [5, 4],
    "conv_kernel": [10, 8],
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "pad_token_id": 0,
}
MODEL = Wav2Vec2Config(feat_extract_norm="layer", **SIZES)


def wav(samples: np.ndarray, rate: int = RATE) -> dict[str, Any]:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    return {"bytes": file.getvalue(), "path": None}


def noise(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, size).astype(np.float32)


def given(tmp_path: Path, model: Any = MODEL, texts: Any = ("Hello  two", "see"), **config: Any) -> Given:
    rows = Dataset.from_list([{"audio": wav(noise(800)), "text": text, "label": "a"} for text in texts])
    options = {"sampling_rate": RATE, "tokenizer": TokenizerConfig(kind="characters", vocab_size=32), **config}
    return Given(DataConfig({"_target_": "x"}, **options), rows, tmp_path, "".join(texts), None, model)


def test_audio_is_mixed_to_one_channel_and_resampled() -> None:
    stereo = np.stack([noise(1600), -noise(1600)], 1)
    assert np.allclose(waveform(wav(stereo), RATE), 0, atol=1e-4)
    assert len(waveform(wav(noise(3200), 16_000), RATE)) == 1600
    assert len(waveform({"array": noise(100), "sampling_rate": RATE}, RATE)) == 100


@pytest.mark.parametrize(
    "broken", [None, {"bytes": b"no audio", "path": None}, {"bytes": None, "path": "none.wav"}, 3, wav(noise(0))]
)
def test_values_that_are_no_audio_are_refused(broken: Any) -> None:
    with pytest.raises(ValueError, match="audio"):
        waveform(broken, RATE)


def test_messages_on_files_say_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "text.mp3").write_text("hello")
    with pytest.raises(ValueError, match="it is of no format that libsndfile reads"):
        waveform(str(tmp_path / "text.mp3"), RATE)
    with pytest.raises(ValueError, match=r"there is no file none\.wav"):
        waveform("none.wav", RATE)


def test_texts_become_characters_and_back(tmp_path: Path) -> None:
    samples = TranscribedSpeech(given(tmp_path))
    tokenizer = samples.processor.tokenizer
    labels = samples.sample(given(tmp_path).rows[0])["labels"]
    assert tokenizer.decode(labels, group_tokens=False) == "hello two"
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert samples.facts.vocabulary is not None and samples.facts.vocabulary.size == len(tokenizer)
    said = [labels[0], labels[0], 0, labels[1], labels[2], labels[2], 0, labels[3], labels[4]]
    assert tokenizer.decode(said) == "hello"


def test_texts_of_one_word_have_a_space_too(tmp_path: Path) -> None:
    tokenizer = TranscribedSpeech(given(tmp_path, texts=("one", "two"))).processor.tokenizer
    assert tokenizer.word_delimiter_token_id not in (None, tokenizer.unk_token_id)


def test_a_text_too_long_for_its_audio_is_refused(tmp_path: Path) -> None:
    samples = TranscribedSpeech(given(tmp_path, texts=("o" * 30, "a")))
    with pytest.raises(ValueError, match="38 frames, too few for a text of 59"):
        samples.sample(given(tmp_path, texts=("o" * 30,)).rows[0])
    with pytest.raises(ValueError, match="no text"):
        samples.sample({"audio": wav(noise(800)), "text": " "})


def test_frames_are_those_of_the_model() -> None:
    model = AutoModelForCTC.from_config(MODEL).eval()
    for size in (100, 801, 1333):
        with torch.no_grad():
            logits = model(torch.from_numpy(noise(size))[None]).logits
        assert int(output_frames(MODEL)(size)) == logits.shape[1]


def collator(tmp_path: Path, micro: int = 2, model: Any = MODEL, **options: Any) -> SpeechCollator:
    processor = TranscribedSpeech(given(tmp_path, model)).processor
    return SpeechCollator(processor, model, micro, seed=1, **options)


def samples_of(sizes: list[int]) -> list[dict[str, Any]]:
    return [
        {"input_values": noise(size, n) + 1, "labels": np.arange(1, n + 2), "index": n, "position": 50 + n}
        for n, size in enumerate(sizes)
    ]


def test_padding_changes_nothing(tmp_path: Path) -> None:
    model = AutoModelForCTC.from_config(MODEL).eval()
    samples, together = samples_of([500, 900, 700]), collator(tmp_path)
    micro = together.micro_batch(samples)
    assert micro.targets["labels"].tolist() == [[1, -100, -100], [1, 2, -100], [1, 2, 3]]
    assert micro.length == int(micro.targets["frames"].sum())
    with torch.no_grad():
        logits = model(**micro.inputs).logits
        for row, sample in enumerate(samples):
            alone = model(**together.micro_batch([sample]).inputs).logits[0]
            assert torch.allclose(logits[row, : len(alone)], alone, atol=1e-5)


def test_a_model_that_sees_the_padding_needs_one_length(tmp_path: Path) -> None:
    sees = Wav2Vec2Config(feat_extract_norm="group", **SIZES)
    with pytest.raises(UserError, match=r"collator\.longest_seconds"):
        collator(tmp_path, model=sees)
    padding = collator(tmp_path, model=sees, longest_seconds=0.125)
    micro = padding.micro_batch(samples_of([500, 900]))
    assert micro.inputs["input_values"].shape == (2, 1000) and "attention_mask" not in micro.inputs
    with pytest.raises(UserError, match="shorter than an audio clip"):
        padding.micro_batch(samples_of([1001]))


def test_silent_spans_are_a_function_of_seed_and_position(tmp_path: Path) -> None:
    samples = samples_of([1000, 800, 900, 1000])
    several, alone = (collator(tmp_path, micro, masked=0.3, span_seconds=0.01) for micro in (2, 1))
    one = [row for micro in several(samples) for row in micro.inputs["input_values"]]
    other = [row for micro in reversed(alone(samples[::-1])) for row in micro.inputs["input_values"]]
    for first, second, sample in zip(one, other, samples, strict=True):
        size = len(sample["input_values"])
        assert torch.equal(first[:size], second[:size])
        assert 0.05 < (first[:size] == 0).float().mean() < 0.4
    kept = several.micro_batch(samples[:1]).inputs["input_values"]
    assert np.array_equal(kept[0].numpy(), samples[0]["input_values"])


def test_a_folder_of_audio_gives_labels_or_its_metadata(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.wav").write_bytes(wav(noise(100))["bytes"])
    rows = Folder(str(tmp_path), "audio").rows(str(tmp_path / "cache"))
    assert rows["label"] == ["a", "b"] and rows[0]["audio"]["path"] == "a/1.wav"
    made = Given(DataConfig({"_target_": "x"}, sampling_rate=RATE), rows, tmp_path, "print", None, MODEL)
    samples = LabelledAudio(made)
    assert samples.sample(rows[1])["label"] == 1 and samples.facts.labels == ("a", "b")
    (tmp_path / "metadata.csv").write_text("file_name,text\na/1.wav,hello\n")
    assert Folder(str(tmp_path), "audio").rows(str(tmp_path / "cache"))["text"] == ["hello"]
    (tmp_path / "metadata.csv").write_text("file_name,text\nc/1.wav,hello\n")
    with pytest.raises(UserError, match=r"c/1\.wav"):
        Folder(str(tmp_path), "audio").rows(str(tmp_path / "cache"))


def _folder_with(folder: Path, name: str, content: bytes) -> Folder:
    folder.mkdir(parents=True, exist_ok=True)
    for clip in ("one.wav", "two.wav"):
        (folder / clip).write_bytes(wav(noise(100))["bytes"])
    (folder / name).write_bytes(content)
    return Folder(str(folder), "audio")


def test_metadata_may_have_a_mark_line_breaks_and_columns_that_rows_lack(tmp_path: Path) -> None:
    """A column that only a later row has must not be dropped."""
    first, second = tmp_path / "csv", tmp_path / "jsonl"
    for folder in (first, second):
        folder.mkdir()
    content = '\ufefffile_name,text\r\none.wav,"two\nlines"\r\ntwo.wav,other\r\n'.encode()
    rows = _folder_with(first, "metadata.csv", content).rows(str(tmp_path / "cache"))
    assert rows["text"] == ["two\nlines", "other"]
    content = b'{"file_name": "one.wav"}\n\n{"file_name": "two.wav", "text": "other"}\n'
    rows = _folder_with(second, "metadata.jsonl", content).rows(str(tmp_path / "cache"))
    assert rows["text"] == [None, "other"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metadata.csv", b"file_name,text\none.wav,a,b\n", "line 2 has 3 cells, and the header has 2"),
        ("metadata.csv", b"file_name,text\none.wav\n", "line 2 has 1 cells, and the header has 2"),
        ("metadata.csv", b"name,text\none.wav,a\n", "has no column file_name; it has name, text"),
        ("metadata.csv", b"file_name,text\none.wav,\xff\n", "cannot be read as UTF-8"),
        ("metadata.csv", b"file_name,text\nthree.wav,a\n", "names 'three.wav' as file_name, which is not a file there"),
        ("metadata.csv", b'file_name,text\none.wav,"a\n', "cannot be read"),
        ("metadata.jsonl", b'["one.wav"]\n', "line 1 is not an object with columns"),
        ("metadata.jsonl", b'\n{"file_name": \n', "line 2 is not valid JSON"),
        (
            "metadata.jsonl",
            b'{"file_name": "one.wav", "label": 1}\n{"file_name": "two.wav", "label": "a"}\n',
            "values of several types",
        ),
    ],
)
def test_metadata_that_cannot_be_used(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        _folder_with(tmp_path, name, content).rows(str(tmp_path / "cache"))
    assert words in str(caught.value), caught.value


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"array": [0.0, float("nan")], "sampling_rate": 8000}, "not finite"),
        ({"array": [0.0, 1.0], "sampling_rate": 0}, "the sampling rate 0"),
        ({"array": [0.0, 1.0]}, "the sampling rate 0"),
        ({"array": [], "sampling_rate": 8000}, "is empty"),
    ],
)
def test_audio_without_usable_samples_is_refused(stored: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        waveform(stored, 8000)
    assert seconds([stored]) in ([], [len(stored["array"]) / 8000])


def test_a_check_finds_columns_and_folders_without_audio(tmp_path: Path) -> None:
    """``trireme check`` sees the same columns in a folder as a run."""
    folder = _folder_with(tmp_path / "flat", "notes.txt", b"none")
    assert folder.column_names() == ["audio"] == folder.rows(str(tmp_path / "cache")).column_names
    named = _folder_with(tmp_path / "named", "metadata.csv", b"file_name,words\none.wav,hello\n")
    assert named.column_names() == ["audio", "words"] == named.rows(str(tmp_path / "cache")).column_names
    (tmp_path / "empty").mkdir()
    for kind, words in (("audio", "holds no audio files"), ("image", "holds no images")):
        with pytest.raises(UserError, match=words):
            Folder(str(tmp_path / "empty"), kind).look()  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is a file, not a folder"):
        Folder(str(tmp_path / "flat" / "one.wav"), "audio").look()


def test_audio_that_a_model_cannot_take_is_refused_with_its_row(tmp_path: Path) -> None:
    """Without the check, a convolution failed with a traceback, and a broken file was named by a memory address."""
    samples = LabelledAudio(given(tmp_path))
    assert samples.sample({"audio": wav(noise(800)), "label": "a"})["label"] == 0
    with pytest.raises(ValueError, match="its audio of 12 samples is too short for one frame"):
        samples.sample({"audio": wav(noise(12)), "label": "a"})
    with pytest.raises(ValueError, match=r"its audio cannot be read: [^<]*$"):
        samples.sample({"audio": {"bytes": b"RIFFxxxx", "path": None}, "label": "a"})


def test_audio_files_beside_labelled_folders_are_refused(tmp_path: Path) -> None:
    """Without the check, one stray file took the labels of all others."""
    for name in ("a/1.wav", "b/1.wav", "stray.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(wav(noise(100))["bytes"])
    with pytest.raises(UserError, match=r"beside its subfolders \(stray\.wav\)"):
        Folder(str(tmp_path), "audio").look()
