"""A vocoder without learned weights: log-mel spectrogram in, waveform out, its phase found by Griffin and Lim's rounds.

It stands where a diffusers pipeline expects a `SpeechT5HifiGan`, and is one by its type, for diffusers checks that: the same
configuration keys, the same call, and none of its layers.
"""

import math

import torch
from torchaudio.functional import griffinlim, melscale_fbanks
from transformers import PreTrainedConfig, PreTrainedModel, SpeechT5HifiGan

from nextgpt.decoders.audioldm import window_size


class GriffinLimVocoderConfig(PreTrainedConfig):
    """Configuration of a `GriffinLimVocoder`.

    Args:
        sampling_rate: of the waveform, in Hz.
        model_in_dim: mel bins of the spectrogram.
        upsample_rates: their product is the hop length in samples, as for HiFi-GAN.
        rounds: of the phase search.
    """

    model_type = "griffin_lim_vocoder"

    def __init__(self, sampling_rate=16_000, model_in_dim=64, upsample_rates=(160,), rounds=32, **kwargs):
        self.sampling_rate, self.model_in_dim = sampling_rate, model_in_dim
        self.upsample_rates, self.rounds = list(upsample_rates), rounds
        super().__init__(**kwargs)

    @property
    def hop_length(self) -> int:
        """Samples between two frames."""
        return math.prod(self.upsample_rates)

    @property
    def n_fft(self) -> int:
        """Samples of a window."""
        return window_size(self.hop_length)


class GriffinLimVocoder(SpeechT5HifiGan):
    """Finds a waveform whose spectrogram is the given one (Griffin and Lim 1984; the fast form of Perraudin 2013).

    The mel filters are undone by their pseudo-inverse. It is deterministic and has no weights but the filters.
    """

    config_class = GriffinLimVocoderConfig
    main_input_name = "spectrogram"

    def __init__(self, config: GriffinLimVocoderConfig):
        PreTrainedModel.__init__(self, config)
        with torch.device("cpu"):  # not on the meta device, where models are made before their weights are read
            filters = melscale_fbanks(
                config.n_fft // 2 + 1,
                0.0,
                config.sampling_rate / 2,
                config.model_in_dim,
                config.sampling_rate,
                norm="slaney",
                mel_scale="slaney",
            )  # [bins, mel]
            inverse = torch.linalg.pinv(filters)  # [mel, bins]
        # A parameter, for transformers takes a model's dtype and device from its parameters.
        self.inverse_filters = torch.nn.Parameter(inverse, requires_grad=False)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Draws nothing: the filters are computed."""

    @torch.no_grad()
    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """Log-mel spectrogram `[frames, mel]` or `[N, frames, mel]` → waveform `[samples]` or `[N, samples]`.

        One frame gives one hop of samples.
        """
        if spectrogram.ndim == 3:
            return torch.stack([self._waveform(single) for single in spectrogram])
        return self._waveform(spectrogram)

    def _waveform(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """One spectrogram `[frames, mel]` → waveform `[samples]`.

        The rounds amplify the smallest difference in rounding, and a Fourier transform rounds differently in a batch: by
        itself each sounds the same in any company. On a processor this takes no longer than a batch.
        """
        magnitude = (spectrogram.float().exp() @ self.inverse_filters.float()).clamp(min=0).T  # [bins, frames]
        samples = magnitude.shape[-1] * self.config.hop_length
        waveform = griffinlim(
            torch.nn.functional.pad(magnitude[None], (0, 1), mode="replicate"),
            window=torch.hann_window(self.config.n_fft, device=magnitude.device),
            n_fft=self.config.n_fft,
            hop_length=self.config.hop_length,
            win_length=self.config.n_fft,
            power=1.0,
            n_iter=self.config.rounds,
            momentum=0.99,
            length=samples,
            rand_init=False,
        )
        return waveform[0].clamp(-1, 1).to(spectrogram.dtype)
