"""Turn one data sample (its text with labels, image, audio clip or numbers: the classes of ``views.py``) into JSON
values, and these values into HTML for the reports of runs and of ``trireme data``.

The HTML is made from the JSON values only, and all of them are escaped, because the run folder may come from somebody
else.
"""

from __future__ import annotations

import base64
import io
import re
import wave
from html import escape
from typing import Any

import numpy as np

from ...visible_text import visible
from .format_data_report import number, numbers_text
from .views import AudioView, ImageView, Numbers, Piece, Role, Text, Tokens, View

LEAST_WIDTH = 128
"""Least width at which small images are shown."""
COLUMNS = 400
"""Parts of an audio clip whose highest and lowest values are drawn."""
Stored = dict[str, Any]
ROLES = frozenset(role.value for role in Role)
BASE64 = re.compile(r"[A-Za-z0-9+/=]*")


def stored_view(view: View, most: int | None = None) -> Stored:
    """A view as values that JSON can hold.

    Args:
        most: greatest number of characters of a text, and side of an image; None keeps everything.
    """
    if isinstance(view, Tokens):
        return {"kind": "tokens", "pieces": _stored_pieces(view.pieces, most)}
    if isinstance(view, Text):
        return {"kind": "text", "text": view.text[:most]}
    if isinstance(view, ImageView):
        return _stored_image(view, most)
    if isinstance(view, AudioView):
        return _stored_audio(view)
    return {"kind": "text", "text": numbers_text(view) if isinstance(view, Numbers) else ""}


def view_html(view: Stored) -> str:
    """The HTML of a stored view; empty if it is none."""
    kind = view.get("kind")
    if kind == "tokens":
        return f"<pre>{''.join(map(_piece_html, view.get('pieces') or ()))}</pre>"
    if kind in ("image", "picture"):  # "picture" and "sound" are the names of earlier versions
        image = f'<img alt="" width="{int(view["width"])}" src="data:image/png;base64,{_base64(view["png"])}">'
        return f'{image}<span class="dim">{shown_text(view.get("about"))}</span>'
    if kind in ("audio", "sound"):
        player = f'<audio controls src="data:audio/wav;base64,{_base64(view["wav"])}"></audio>'
        return f'{_waveform(view["wave"])}{player} <span class="dim">{shown_text(view.get("about"))}</span>'
    return f"<pre>{shown_text(view.get('text'))}</pre>" if kind == "text" else ""


def shown_text(text: Any) -> str:
    """Prepare an untrusted text for HTML: escape it, and replace invisible characters by visible symbols."""
    return escape(visible(str("" if text is None else text)))


def _stored_pieces(pieces: tuple[Piece, ...], most: int | None) -> list[Stored]:
    kept, left = [], most
    for piece in pieces:
        if left is not None and left <= 0:
            kept.append({"text": " ...", "role": Role.PADDING.value})
            break
        one: Stored = {"text": piece.text[:left], "role": piece.role.value}
        one |= {} if piece.hides is None else {"hides": piece.hides.strip()[:most]}
        one |= {"count": piece.count} if piece.role is Role.PADDING and piece.count > 1 else {}
        kept.append(one)
        left = None if left is None else left - len(piece.text)
    return kept


def _piece_html(piece: Stored) -> str:
    role = piece.get("role") if piece.get("role") in ROLES else Role.READ.value
    repeated = f" x {int(piece['count']):,}" if "count" in piece else ""
    hides = piece.get("hides")
    hidden = "" if hides is None else f'<span class="hidden">[{shown_text(hides)}]</span>'
    return f'<span class="{role}">{shown_text(piece.get("text"))}{repeated}</span>{hidden}'


def _stored_image(view: ImageView, most: int | None) -> Stored:
    from PIL import Image

    image, file = Image.fromarray(view.pixels), io.BytesIO()
    if most is not None:
        image.thumbnail((most, most))
    image.save(file, "PNG")
    width = max(LEAST_WIDTH // max(image.width, 1), 1) * image.width
    return {"kind": "image", "png": base64.b64encode(file.getvalue()).decode(), "width": width, "about": view.about}


def _stored_audio(view: AudioView) -> Stored:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(view.rate)
        out.writeframes((np.clip(view.samples, -1, 1) * 32767).astype("<i2").tobytes())
    parts = np.array_split(view.samples, min(COLUMNS, max(len(view.samples), 1)))
    shape = [[round(float(part.min(initial=0.0)), 3), round(float(part.max(initial=0.0)), 3)] for part in parts]
    about = f"{number(view.seconds)} s at {view.rate:,} Hz; {view.about}"
    return {"kind": "audio", "wav": base64.b64encode(file.getvalue()).decode(), "wave": shape, "about": about}


def _waveform(wave_shape: list[list[float]]) -> str:
    """The highest and lowest value of each part of an audio clip, as a filled shape."""
    upper = [f"{place},{50 - 48 * float(high):.1f}" for place, (_, high) in enumerate(wave_shape)]
    lower = [f"{place},{50 - 48 * float(low):.1f}" for place, (low, _) in enumerate(wave_shape)]
    outline = f"M{' L'.join([*upper, *reversed(lower)])} Z"
    box = f'class="wave" viewBox="0 0 {len(wave_shape)} 100" preserveAspectRatio="none" role="img"'
    return f'<svg {box} aria-label="waveform"><path d="{outline}"/></svg>'


def _base64(text: Any) -> str:
    return text if isinstance(text, str) and BASE64.fullmatch(text) else ""
