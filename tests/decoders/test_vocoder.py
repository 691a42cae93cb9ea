"""The vocoder without weights: its waveforms sound like the spectrograms that they were made from."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from nextgpt.decoders.audioldm import log_mel_spectrogram
from nextgpt.decoders.vocoder import GriffinLimVocoder, GriffinLimVocoderConfig
from tiny_decoders import save_tiny_audioldm

SAMPLES = 16_000


def tone(frequency: float) -> torch.Tensor:
    time = torch.arange(SAMPLES) / 16_000
    return 0.3 * sum(torch.sin(2 * torch.pi * frequency * n * time) / n for n in (1, 2, 3)) * torch.exp(-2 * time)


def spectrogram(waveforms: torch.Tensor) -> torch.Tensor:
    return log_mel_spectrogram(waveforms, 16_000, 160, 64)[:, :100]


def test_a_tone_is_the_same_tone_again():
    vocoder = GriffinLimVocoder(GriffinLimVocoderConfig())
    true = spectrogram(torch.stack([tone(220), tone(880)]))
    made = vocoder(true)
    assert made.shape == (2, SAMPLES)
    for own, other, again in zip(true, true.flip(0), spectrogram(made), strict=True):
        heard = own > own.max() - 5  # what is 40 dB below the loudest is as good as silence
        assert (again - own)[heard].abs().mean() < 0.4
        assert (again - other)[heard].abs().mean() > 1.5


def test_a_sound_alone_is_the_same_in_any_company():
    vocoder = GriffinLimVocoder(GriffinLimVocoderConfig())
    spectrograms = spectrogram(torch.stack([tone(220), tone(880), tone(440)]))
    together = vocoder(spectrograms)
    for alone, again, other in zip(spectrograms, together, vocoder(spectrograms[[2, 0, 1]])[[1, 2, 0]], strict=True):
        assert torch.equal(vocoder(alone), again) and torch.equal(other, again)


def test_it_saves_and_loads(tmp_path):
    vocoder = GriffinLimVocoder(GriffinLimVocoderConfig(rounds=4, upsample_rates=(4, 40)))
    vocoder.save_pretrained(tmp_path)
    again = GriffinLimVocoder.from_pretrained(tmp_path)
    assert again.config.hop_length == 160 and again.config.rounds == 4
    mel = spectrogram(tone(440)[None])
    assert torch.equal(again(mel), vocoder(mel))


@pytest.mark.slow
def test_a_pipeline_with_it_loads_where_nobody_has_imported_it_and_nothing_is_said_of_its_type(tmp_path):
    folder = save_tiny_audioldm(tmp_path)
    shutil.rmtree(folder / "vocoder")
    GriffinLimVocoder(GriffinLimVocoderConfig(rounds=4, upsample_rates=(4, 40))).save_pretrained(folder / "vocoder")
    index = json.loads((folder / "model_index.json").read_text())
    index["vocoder"] = ["nextgpt.decoders.vocoder", "GriffinLimVocoder"]
    (folder / "model_index.json").write_text(json.dumps(index))
    program = "import sys; from nextgpt.decoders import load_decoder; load_decoder('audioldm', sys.argv[1]).pipeline"
    done = subprocess.run([sys.executable, "-c", program, str(folder)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Expected types" not in done.stderr
