"""Make the synthetic voices that ``python -m flashlips_core eval --speech DIR`` measures: ``python tests/make_speech.py DIR``.

Needs espeak-ng's library, from the system or from ``pip install espeakng-loader``; it is a tool (GPL-3.0) that nothing of this
software contains or loads elsewhere. It says itself when each of its phonemes sounds. Each DIR/NAME.wav gets a NAME.json of
[[ARPAbet, start s, end s], ...].
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import sys
import wave
from pathlib import Path

# Everyday English without GRID's fifty-one words (but for 'a'), each under three seconds: as long as its clips are
SENTENCES = (
    "Maybe Bob will buy my boat.",
    "The farmer opened a huge umbrella.",
    "Papa packed a lamp for my mother.",
    "Where did all those chickens go?",
    "A bumpy road made Pamela jump.",
    "Father walked across the hot sand.",
    "They compare both maps from home.",
    "I thought the music was too loud.",
    "My brother missed the morning bus.",
    "Change the oil before you drive.",
    "Open the box and empty it.",
    "Summer nights are calm and warm.",
)
VOICES = ("en-us+f3", "en-us+klatt4", "en-us+m5", "en-us+Andy", "en-us+f2", "en-us+m7")
VOICES_PER_SENTENCE = 2
LEAD_S = 0.25  # silence before the first sound and after the last

# espeak-ng's IPA of American English, without stress and length marks
ARPABET = {
    "p": "P", "b": "B", "m": "M", "t": "T", "d": "D", "n": "N", "k": "K", "\u0261": "G", "g": "G", "\u014b": "NG",
    "f": "F", "v": "V", "\u03b8": "TH", "\u00f0": "DH", "s": "S", "z": "Z", "\u0283": "SH", "\u0292": "ZH",
    "t\u0283": "CH", "d\u0292": "JH", "h": "HH", "l": "L", "r": "R", "\u0279": "R", "w": "W", "j": "Y",
    "\u027e": "D", "\u0294": "T", "i": "IY", "\u026a": "IH", "\u1d7b": "IH", "\u025b": "EH", "\u00e6": "AE",
    "a": "AE", "\u0251": "AA", "\u0252": "AA", "\u0254": "AO", "\u028a": "UH", "u": "UW", "\u028c": "AH",
    "\u0259": "AH", "\u0250": "AH", "\u025c": "ER", "\u025a": "ER", "\u025d": "ER", "e\u026a": "EY", "a\u026a": "AY",
    "\u0254\u026a": "OY", "a\u028a": "AW", "o\u028a": "OW", "o": "OW", "\u0259l": "L", "\u0251\u0279": "AA",
    "\u0254\u0279": "AO", "\u025b\u0279": "EH", "\u026a\u0279": "IH", "i\u0259": "IY", "\u028a\u0279": "UH",
    "o\u0279": "AO", "a\u026a\u025a": "AY", "a\u026a\u0259": "AY", "n\u0329": "N", "m\u0329": "M",
}  # fmt: skip
MARKS = "\u02c8\u02cc\u02d0\u0361\u200d"  # stress, length, ties

AUDIO_SYNCHRONOUS, PHONEME_EVENTS, PHONEMES_AS_IPA, NO_EXIT = 2, 0x0001, 0x0002, 0x8000
PHONEME_EVENT, UTF8 = 7, 1


class _Name(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int), ("unique", ctypes.c_uint), ("text_position", ctypes.c_int), ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int), ("sample", ctypes.c_int), ("user_data", ctypes.c_void_p), ("id", _Name),
    ]  # fmt: skip


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Speaker:
    """espeak-ng, which may be started once in a process."""

    def __init__(self) -> None:
        path, data = _find_library()
        self._library = ctypes.CDLL(path)
        flags = PHONEME_EVENTS | PHONEMES_AS_IPA | NO_EXIT
        self.rate_hz = self._library.espeak_Initialize(AUDIO_SYNCHRONOUS, 0, data, flags)
        self._callback = _Callback(self._hear)  # kept: the library holds on to it
        self._library.espeak_SetSynthCallback(self._callback)
        self._sound, self._heard = bytearray(), []

    def _hear(self, samples, count: int, events) -> int:
        if samples and count > 0:
            self._sound += ctypes.string_at(samples, 2 * count)
        index = 0
        while events[index].type:
            if events[index].type == PHONEME_EVENT:
                self._heard.append((events[index].id.string.decode("utf-8", "replace"), events[index].sample))
            index += 1
        return 0

    def say(self, text: str, voice: str) -> tuple[bytes, list[tuple[str, float, float]]]:
        """16-bit mono samples, and each phoneme's IPA, start and end in seconds."""
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise SystemExit(f"espeak-ng has no voice {voice}.")
        self._sound.clear()
        self._heard.clear()
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, UTF8, None, None)
        self._library.espeak_Synchronize()
        ends = [sample for _, sample in self._heard[1:]] + [len(self._sound) // 2]
        times = [(name, start / self.rate_hz, end / self.rate_hz) for (name, start), end in zip(self._heard, ends, strict=True)]
        return bytes(self._sound), times


def _find_library() -> tuple[str, bytes | None]:
    try:
        import espeakng_loader
    except ImportError:
        path = ctypes.util.find_library("espeak-ng")
        if path is None:
            raise SystemExit("espeak-ng is not here; install libespeak-ng1, or run: pip install espeakng-loader") from None
        return path, None
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path().encode()


def to_arpabet(ipa: str) -> str:
    """The ARPAbet phone of an IPA phoneme; pauses are SIL."""
    plain = "".join(character for character in ipa if character not in MARKS)
    if not plain.strip("_:;|! "):
        return "SIL"
    if plain not in ARPABET:
        raise SystemExit(
            f"The phoneme '{ipa}' ({ipa.encode('unicode_escape').decode()}) has no ARPAbet name here; add it to ARPABET."
        )
    return ARPABET[plain]


def write_sentence(folder: Path, name: str, speaker: Speaker, text: str, voice: str) -> float:
    """Write one sentence with its phones. Returns its seconds."""
    sound, times = speaker.say(text, voice)
    silence = bytes(2 * round(LEAD_S * speaker.rate_hz))
    with wave.open(str(folder / f"{name}.wav"), "wb") as file:
        file.setparams((1, 2, speaker.rate_hz, 0, "NONE", None))
        file.writeframes(silence + sound + silence)
    phones = [[to_arpabet(ipa), round(start + LEAD_S, 4), round(end + LEAD_S, 4)] for ipa, start, end in times]
    (folder / f"{name}.json").write_text(json.dumps(phones), encoding="utf-8")
    return len(silence + sound + silence) / 2 / speaker.rate_hz


def main(folder: Path) -> None:
    """Every sentence in some of the voices, named so that the first few files hold all voices."""
    folder.mkdir(parents=True, exist_ok=True)
    speaker = Speaker()
    for turn in range(VOICES_PER_SENTENCE):
        for index, text in enumerate(SENTENCES):
            voice = VOICES[(index + turn * len(VOICES) // VOICES_PER_SENTENCE) % len(VOICES)]
            name = f"{turn * len(SENTENCES) + index:02d}-{voice.replace('+', '-')}"
            print(f"{name}: {write_sentence(folder, name, speaker, text, voice):.2f} s, {text}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("Name the folder to write, e.g. python tests/make_speech.py output/speech")
    main(Path(sys.argv[1]))
