"""Sound to features: resampling, levels, encoders whole and streamed, and a tiny training run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flashlips_core import checkpoint
from flashlips_core.audio import (
    LogMelEncoder,
    MelConvAudioEncoder,
    WindowPlan,
    level_db,
    load_audio_encoder,
    load_emotion_encoder,
    to_mono_16k,
)
from flashlips_core.models.audio_encoder import MEL_CONV_MINI, MelConvConfig, MelConvEncoder, log_mel, mel_filters
from flashlips_core.train import audio as training
from flashlips_core.train.loop.trainer import TrainConfig
from flashlips_core.types import Audio, FlashLipsError

TINY = MelConvConfig(width=16, blocks=2, dim=6)
WAVEFORM_SIZE = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "vocab_size": 8,
}  # fmt: skip
SHORT = WindowPlan(hop=20, before=5, after=5, is_fixed=True)


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    """Noise whose loudness changes, so that rows differ."""
    sound = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    return 0.1 * sound * torch.linspace(0, 30, samples).sin().square()


def tiny_encoder() -> MelConvAudioEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MelConvAudioEncoder(MelConvEncoder(TINY))


def streamed(encoder, samples: torch.Tensor, sizes: list[int]):
    """Features from pushes of the given sizes, the last repeated until the sound is over."""
    stream, parts, at = encoder.stream(), [], 0
    while at < len(samples):
        size = sizes[min(len(parts), len(sizes) - 1)]
        parts.append(stream.push(samples[at : at + size]))
        at += size
    parts.append(stream.flush())
    return torch.cat([p.values for p in parts]), torch.cat([p.level_db for p in parts])


def assert_stream_equals_whole(encoder, samples: torch.Tensor) -> None:
    whole = encoder.encode(samples)
    assert whole.values.shape == (math.ceil(len(samples) / 320), encoder.dim) and whole.values.isfinite().all()
    assert whole.rate_hz == encoder.rate_hz == 50 and whole.kind == encoder.kind
    for sizes in ([1, 319, 5000, 640], [len(samples)], [4096]):
        values, levels = streamed(encoder, samples, sizes)
        assert torch.allclose(values, whole.values, atol=1e-4)
        assert torch.equal(levels, whole.level_db)


# -- samples -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 12345])
def test_resampling_keeps_a_sweep_in_place(rate: int) -> None:
    def sweep(at_hz: int, samples: int) -> torch.Tensor:
        time = torch.arange(samples, dtype=torch.float64) / at_hz
        return (0.5 * torch.sin(2 * torch.pi * (200 + 300 * time) * time)).float()

    samples = 3 * rate + 17
    out = to_mono_16k(Audio(sweep(rate, samples)[None], rate))
    assert len(out) == math.ceil(samples * 16000 / rate)
    assert (out - sweep(16000, len(out)))[500:-1000].abs().max() < 1e-3


def test_channels_are_averaged_and_16_khz_is_left_alone() -> None:
    left, right = noise(1000), noise(1000, seed=1)
    assert torch.allclose(to_mono_16k(Audio(torch.stack([left, right]), 16000)), (left + right) / 2)


def test_empty_and_broken_sound_is_refused() -> None:
    with pytest.raises(FlashLipsError, match="zero length"):
        to_mono_16k(Audio(torch.zeros(2, 0), 44100))
    with pytest.raises(FlashLipsError, match="NaN"):
        to_mono_16k(Audio(torch.tensor([[0.0, math.nan]]), 44100))
    with pytest.raises(FlashLipsError, match="zero length"):
        LogMelEncoder().encode(torch.zeros(0))
    with pytest.raises(FlashLipsError, match="NaN"):
        LogMelEncoder().encode(torch.full((400,), math.inf))


def test_levels_are_in_dB_full_scale() -> None:
    square = torch.cat([torch.ones(320), torch.full((320,), 0.1), torch.zeros(320), torch.ones(32)])
    assert torch.allclose(level_db(square), torch.tensor([0.0, -20.0, -100.0, -10.0]), atol=1e-4)


def test_mel_filters_cover_every_bin_between_the_first_and_last_edge() -> None:
    filters = mel_filters(80)
    assert filters.shape == (201, 80) and (filters >= 0).all() and (filters[2:-1].sum(1) > 0).all() and (filters.sum(0) > 0).all()


def test_a_tone_lights_the_mel_bin_of_its_pitch() -> None:
    mels = log_mel(torch.sin(2 * torch.pi * 1000 * torch.arange(4000) / 16000)[None])
    top = 2595 * math.log10(1 + 8000 / 700)
    expected = 2595 * math.log10(1 + 1000 / 700) / top * 81 - 1
    assert (mels[0].argmax(0).float() - expected).abs().max() <= 1


# -- encoders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 320, 5000, 16_011])
def test_streamed_features_equal_the_whole_clips(samples: int) -> None:
    assert_stream_equals_whole(LogMelEncoder(), noise(samples))
    assert_stream_equals_whole(tiny_encoder(), noise(samples))


def test_long_clips_are_heard_in_pieces_without_seams() -> None:
    encoder = tiny_encoder()
    whole = encoder.encode(noise(32_000)).values
    encoder.plan = WindowPlan(7, encoder.plan.before, encoder.plan.after, is_fixed=False)
    assert torch.allclose(encoder.encode(noise(32_000)).values, whole, atol=1e-5)


def test_a_row_depends_on_its_context_and_nothing_else() -> None:
    encoder = tiny_encoder()
    sound = noise(32_000)
    changed, row, reach = sound.clone(), 50, encoder.network.context
    changed[: (row - reach) * 320] = 0
    changed[(row + reach + 1) * 320 :] = 1
    before, after = encoder.encode(sound).values, encoder.encode(changed).values
    assert torch.allclose(before[row], after[row], atol=1e-5) and not torch.allclose(before[row + 1], after[row + 1], atol=1e-5)


def test_rows_are_centred_on_their_own_samples() -> None:
    sound = torch.zeros(100 * 320)
    sound[40 * 320 + 160] = 1.0  # the middle of row 40
    values = LogMelEncoder().encode(sound).values
    assert (values - values[0]).abs().sum(1).argmax() == 40
    assert torch.equal(values[39, :80], values[0, :80]) and torch.equal(values[41, 80:], values[0, 80:])


def test_batches_of_waveforms_equal_single_ones_and_mels() -> None:
    network = tiny_encoder().network
    sound = torch.stack([noise(9600, seed) for seed in range(3)])
    together = network(sound)
    assert together.shape == (3, 30 - 2 * network.context, 6)
    assert torch.allclose(together, torch.cat([network(one[None]) for one in sound]), atol=1e-5)
    assert torch.equal(together, network.from_mels(network.mels(sound)))


def test_the_bundled_encoder_keeps_its_size() -> None:
    with torch.device("meta"):
        network = MelConvEncoder(MEL_CONV_MINI)
    assert sum(p.numel() for p in network.parameters()) == 1_284_800
    assert network.context == 17  # 0.34 s


def test_a_stream_that_ended_takes_no_more_and_wants_mono() -> None:
    stream = LogMelEncoder().stream()
    with pytest.raises(FlashLipsError, match="mono"):
        stream.push(torch.zeros(2, 100))
    stream.flush()
    with pytest.raises(FlashLipsError, match="has ended"):
        stream.push(torch.zeros(100))


def test_an_encoder_survives_its_checkpoint(tmp_path: Path) -> None:
    encoder, path = tiny_encoder(), tmp_path / "mine.safetensors"
    checkpoint.save(encoder.network, path, "audio-encoder", {"kind": "mine"}, dtype=torch.float32)
    loaded = load_audio_encoder(path, device="cpu")
    assert loaded.kind == "mine" and torch.equal(loaded.encode(noise(5000)).values, encoder.encode(noise(5000)).values)


def test_checkpoints_of_another_role_and_pickles_are_refused(tmp_path: Path) -> None:
    checkpoint.save(tiny_encoder().network, tmp_path / "codec.safetensors", "codec", {})
    with pytest.raises(FlashLipsError, match="'audio-encoder' is needed"):
        load_audio_encoder(tmp_path / "codec.safetensors")
    (tmp_path / "model.pt").write_bytes(b"\x80\x04N.")
    with pytest.raises(FlashLipsError, match="pickle"):
        load_audio_encoder(tmp_path / "model.pt")


@pytest.mark.skipif(
    not (checkpoint.BUNDLED_DIR / "audio-encoder.safetensors").is_file(), reason="the bundled audio encoder is not trained yet"
)
def test_the_bundled_encoder_streams_and_is_standardised() -> None:
    encoder = load_audio_encoder("bundled", device="cpu")
    assert encoder.kind == "flashlips-mel-conv-3" and encoder.dim == 48
    assert_stream_equals_whole(encoder, noise(20_000))


# -- pretrained networks through transformers --------------------------------------------------------------------------


def save_waveform_model(folder: Path, name: str, is_classifier: bool = False, **options) -> Path:
    """A random tiny network of the real architecture, in the real file format."""
    import transformers as hf

    config_class, kind = {
        "wav2vec2": (hf.Wav2Vec2Config, "Wav2Vec2"),
        "hubert": (hf.HubertConfig, "Hubert"),
        "wavlm": (hf.WavLMConfig, "WavLM"),
    }[name]
    config = config_class(**(WAVEFORM_SIZE | options))
    getattr(hf, kind + ("ForSequenceClassification" if is_classifier else "Model"))(config).save_pretrained(folder)
    hf.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def save_whisper(folder: Path, layers: int = 2) -> Path:
    import transformers as hf

    config = hf.WhisperConfig(
        d_model=16, encoder_layers=layers, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16,
        max_source_positions=50, vocab_size=16, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    hf.WhisperModel(config).save_pretrained(folder)
    hf.WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["wav2vec2", "hubert", "wavlm"])
def test_waveform_networks_stream_what_they_hear_whole(name: str, tmp_path: Path) -> None:
    folder = save_waveform_model(tmp_path / f"{name}-tiny", name)
    encoder = load_audio_encoder(folder, device="cpu", windows=SHORT)
    assert encoder.kind == f"{name}-tiny:2" and encoder.dim == 24
    assert_stream_equals_whole(encoder, noise(17_000))


def test_whisper_streams_what_it_hears_whole(tmp_path: Path) -> None:
    encoder = load_audio_encoder(save_whisper(tmp_path / "whisper-tiny"), layer=1, device="cpu", windows=SHORT)
    assert encoder.kind == "whisper-tiny:1" and encoder.dim == 16
    assert_stream_equals_whole(encoder, noise(17_000))


def test_the_chosen_layer_is_the_one_that_transformers_gives(tmp_path: Path) -> None:
    folder = save_waveform_model(tmp_path / "w", "wav2vec2")
    encoder = load_audio_encoder(folder, layer=1, device="cpu", windows=WindowPlan(50, 0, 0, is_fixed=True))
    sound = noise(16_000)
    normal = torch.nn.functional.pad((sound - sound.mean()) / (sound.var(unbiased=False) + 1e-7).sqrt(), (40, 40))
    expected = encoder.network(normal[None], output_hidden_states=True).hidden_states[1][0]
    assert torch.allclose(encoder.encode(sound).values, expected, atol=1e-5)


def test_whisper_tiny_gives_the_layer_that_the_bundled_pose_model_listens_to(tmp_path: Path) -> None:
    encoder = load_audio_encoder(save_whisper(tmp_path / "whisper-tiny", 3), device="cpu", windows=SHORT)
    other = load_audio_encoder(save_whisper(tmp_path / "whisper-other", 3), device="cpu", windows=SHORT)
    assert encoder.kind == "whisper-tiny:2" and other.kind == "whisper-other:3"


def test_whisper_windows_longer_than_it_hears_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FlashLipsError, match="longer than the 50"):
        load_audio_encoder(save_whisper(tmp_path / "w"), device="cpu")


def test_layers_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    folder = save_waveform_model(tmp_path / "w", "hubert")
    with pytest.raises(FlashLipsError, match="choose 0 to 2"):
        load_audio_encoder(folder, layer=3)


def test_folders_that_are_no_speech_network_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FlashLipsError, match="no config.json"):
        load_audio_encoder(tmp_path)
    with pytest.raises(FlashLipsError, match="There is no folder"):
        load_audio_encoder(tmp_path / "missing")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(FlashLipsError, match="'bert' network"):
        load_audio_encoder(tmp_path)


def test_a_network_without_its_preprocessor_or_with_missing_weights_is_refused(tmp_path: Path) -> None:
    folder = save_waveform_model(tmp_path / "w", "wav2vec2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(FlashLipsError, match="lack what its config.json names"):
        load_audio_encoder(folder, device="cpu")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(FlashLipsError, match="Could not load"):
        load_audio_encoder(folder, device="cpu")


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    folder = save_waveform_model(tmp_path / "w", "wav2vec2")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(FlashLipsError, match="Could not load"):
        load_audio_encoder(folder, device="cpu")


def test_an_emotion_embedding_comes_from_any_audio_classifier(tmp_path: Path) -> None:
    folder = save_waveform_model(tmp_path / "emotions", "wav2vec2", is_classifier=True, classifier_proj_size=5, num_labels=3)
    encoder = load_emotion_encoder(folder, device="cpu")
    assert encoder.kind == "emotions" and encoder.dim == 5 and len(encoder.labels) == 3
    heard = []
    embedding = encoder.encode(noise(20_000))
    assert embedding.shape == (5,) and embedding.isfinite().all()
    encoder.encode(noise(8 * 16_000 + 1), lambda *count: heard.append(count))
    assert heard == [(1, 2), (2, 2)]  # where Cancel takes effect
    assert torch.equal(embedding, encoder.encode(noise(20_000)))
    assert not torch.equal(embedding, encoder.encode(noise(20_000, seed=3)))


def test_a_network_that_classifies_nothing_is_no_emotion_encoder(tmp_path: Path) -> None:
    with pytest.raises(FlashLipsError, match="must be an audio classifier"):
        load_emotion_encoder(save_waveform_model(tmp_path / "w", "wav2vec2"))


# -- training ----------------------------------------------------------------------------------------------------------


def save_whisper_encoder(path: Path) -> dict:
    """Weights under Hugging Face's key names, and the sizes to build them with."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    sizes = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    save_file(
        {f"encoder.{k}": v.half().contiguous() for k, v in WhisperEncoder(WhisperConfig(**sizes)).state_dict().items()}, path
    )
    return sizes


def tiny_corpus(tmp_path: Path) -> training.Corpus:
    sizes = save_whisper_encoder(tmp_path / "teacher.safetensors")
    motion = np.random.default_rng(0).standard_normal((50, training.NUM_MOTIONS))
    clips = [
        training.Clip(noise(32_000, 0).numpy(), "one", motion),
        training.Clip(noise(20_000, 1).numpy(), "two"),
        training.Clip(noise(4_000, 2).numpy(), "two"),
    ]
    return training.build_corpus(clips, training.Teacher(tmp_path / "teacher.safetensors", config=sizes), renditions=2)


def train_tiny(corpus: training.Corpus, run: Path, steps: int, schedule: str = "constant") -> MelConvEncoder:
    config = TrainConfig(str(run), steps=steps, schedule=schedule, log_every=1, save_every_s=1e9, ema=0.9)
    return training.train_audio_encoder(corpus, config, training.AudioTrainConfig(batch=4, crop_rows=30, components=8), TINY)


def test_a_corpus_gives_every_row_its_targets_and_keeps_through_a_file(tmp_path: Path) -> None:
    corpus = tiny_corpus(tmp_path)
    assert corpus.rows[:3].tolist() == [100, 62, 12] and len(corpus.targets) == corpus.rows.sum() == len(corpus.samples) // 320
    assert corpus.targets.any(axis=1).all() and np.isfinite(corpus.motion[:100]).all() and np.isnan(corpus.motion[100:174]).all()
    corpus.save(tmp_path / "corpus.npz")
    again = training.Corpus.load(tmp_path / "corpus.npz")
    assert all(
        np.array_equal(value, getattr(again, name), equal_nan=value.dtype.kind == "f") for name, value in corpus.__dict__.items()
    )


def test_training_on_a_tiny_corpus_learns_resumes_and_standardises(tmp_path: Path) -> None:
    corpus = tiny_corpus(tmp_path)
    whole = train_tiny(corpus, tmp_path / "whole", 8)
    train_tiny(corpus, tmp_path / "parts", 5)
    resumed = train_tiny(corpus, tmp_path / "parts", 8)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))
    rows = (tmp_path / "whole" / "losses.csv").read_text().splitlines()
    assert len(rows) == 9 and "teacher" in rows[0] and "motion" in rows[0]
    path = tmp_path / "encoder.safetensors"
    checkpoint.save(whole, path, "audio-encoder", {"licence": "Apache-2.0"})
    features = load_audio_encoder(path, device="cpu").encode(noise(32_000)).values
    assert features.shape == (100, 6) and 0.2 < features.std() < 5


def test_degrading_keeps_the_timing_and_is_a_function_of_the_generator() -> None:
    clicks = torch.zeros(16, 8000)
    clicks[:, 4000] = 1.0
    out = training.degrade(clicks, torch.Generator().manual_seed(0))
    assert torch.equal(out, training.degrade(clicks, torch.Generator().manual_seed(0)))
    assert out.isfinite().all() and (out.abs().argmax(1) - 4000).abs().max() <= 20


def test_a_faster_rendition_is_shorter_and_its_motion_keeps_step() -> None:
    motion = np.repeat(np.arange(100.0)[:, None], training.NUM_MOTIONS, axis=1)
    fast = training.at_speed(training.Clip(noise(64_000).numpy(), "one", motion), 1.25)
    assert len(fast.samples) == 51_200 and fast.motion.shape == (80, training.NUM_MOTIONS)
    assert np.allclose(fast.motion[:, 0], np.arange(80) * 1.25)


def test_clips_too_long_for_the_teacher_are_refused(tmp_path: Path) -> None:
    sizes = save_whisper_encoder(tmp_path / "teacher.safetensors")
    teacher = training.Teacher(tmp_path / "teacher.safetensors", config=sizes)
    with pytest.raises(FlashLipsError, match="under 29 s"):
        list(teacher.listen([np.zeros(30 * 16000, np.float32)]))
