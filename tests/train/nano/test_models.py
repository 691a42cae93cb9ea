"""The towers, the classifiers, and how they are put together: on artwork and sounds made up here."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, LlamaConfig

from nextgpt.configuration_nextgpt import NextGPTConfig
from nextgpt.decoders import sources
from nextgpt.encoders import ImageBind, preprocessor_for
from nextgpt.hub.parts import preset_folder
from nextgpt.report.info import known_world
from nextgpt.train.nano import assemble
from nextgpt.train.nano.dialogues import corpus
from nextgpt.train.nano.dialogues.composer import combinations, load_composer, true_media
from nextgpt.train.nano.evaluation import classifiers
from nextgpt.train.nano.models import audio_encoder, encoder, initial, loop
from nextgpt.train.nano.models.loop import PatchProjection
from nextgpt.train.nano.models.targets import OrthogonalTargets
from nextgpt.train.nano.world import player, sampling, sounds, spectrograms
from nextgpt.train.nano.world.clips import FPS, ClipRenderer, ClipWorld, KeptClips
from nextgpt.train.nano.world.media_files import TrueMedia
from nextgpt.train.nano.world.pictures import Renderer, World
from nextgpt.train.nano.world.unknown_pictures import UnknownClips, UnknownPictures, augment_clips
from nextgpt.train.nano.world.unknown_sounds import KINDS, UnknownSounds

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_audio_tower_learns_from_what_the_encoder_will_hear(small_world):
    world = sounds.SoundWorld(small_world)
    waveforms = world.heard(world.rows("train")[:3])
    config = audio_encoder.new_config()
    alone = torch.stack([preprocessor_for(config).audio(waveform.numpy(), 16_000) for waveform in waveforms])
    together = (audio_encoder.energies_of(waveforms) - config.audio_mean) / config.audio_std
    assert alone.shape == (3, 1, 1, 64, 192), "two seconds are one clip"
    assert torch.allclose(alone[:, 0, 0], together, atol=1e-3)


def test_the_vision_tower_learns_from_the_frames_that_the_encoder_will_watch(small_world):
    world = World(small_world)
    clip = ClipRenderer(world, Renderer(torch.from_numpy(world.art)))(torch.tensor([[0, 4]]))
    frames = clip[0].mul(255).round().byte().permute(1, 2, 3, 0).numpy()
    given = preprocessor_for(encoder.new_config()).video(frames, FPS)
    assert given.shape == (4, 3, 2, 64, 64), "two seconds are four views of two frames"
    tower = encoder.VisionTower(ImageBind(encoder.new_config()).eval())
    with torch.no_grad():
        learned, watched = tower.embed_clips(clip), tower.towers.embed("video", given[None])
    torch.testing.assert_close(learned, watched, atol=0.01, rtol=0)
    assert (learned - tower.embed_clips(clip.flip(2))).norm() > 0.01, "backwards is another clip"


def test_a_phrase_is_no_figure_and_an_effect_has_none():
    ignored = sampling.IGNORED
    figure, phrase, of_stranger, effect = [0, 1, 2], [0, 1, ignored], [ignored, 1, ignored], [3, ignored, ignored]
    told = audio_encoder.no_figure(torch.tensor([figure, phrase, of_stranger, effect]), 5)
    assert told.tolist() == [figure, [0, 1, 5], [ignored, 1, 5], effect]


@pytest.mark.parametrize("new_optimizer", [loop.adamw, lambda modules, rate: loop.muon(modules, modules[:1], rate)])
def test_a_training_goes_on_from_its_checkpoint_and_another_begins_with_its_tensors(tmp_path, new_optimizer):
    kept, head = torch.nn.Linear(3, 3), torch.nn.Linear(3, 2)
    optimizer = new_optimizer([kept, head], 0.1)
    for _ in (earlier := loop.Loop(tmp_path / "made", 0.002, optimizer, {"network": kept})):
        loop.update(optimizer, head(kept(torch.ones(1, 3))).sum())
    new, added = torch.nn.Linear(3, 3), torch.nn.Linear(3, 2)
    optimizer = new_optimizer([new, added], 0.1)
    later = loop.Loop(tmp_path / "made", 0.004, optimizer, {"network": new, "motions": added})
    assert later.step == earlier.step > 0 and torch.equal(new.weight, kept.weight)
    for _ in later:
        loop.update(optimizer, added(new(torch.ones(1, 3))).sum())
    again = loop.Loop(tmp_path / "made", 0.004, optimizer, {"network": new, "motions": added})
    assert again.step == later.step > earlier.step
    larger = torch.nn.Linear(3, 5)
    drawn = larger.weight.clone()
    optimizer = new_optimizer([larger, added], 0.1)
    started = loop.Loop(tmp_path / "larger", 1, optimizer, {"motions": larger}, later.checkpoint)
    assert started.step == 0 and torch.equal(larger.weight, drawn), "another shape"
    like = torch.nn.Linear(3, 2)
    loop.Loop(tmp_path / "like", 1, new_optimizer([like], 0.1), {"motions": like}, later.checkpoint)
    assert torch.equal(like.weight, added.weight)
    with pytest.raises(SystemExit, match="does not fit this version of the maker .*optimizer.*--start-from"):
        loop.Loop(tmp_path / "made", 1, torch.optim.SGD([like.weight], 0.1), {"motions": like})


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before_and_nothing_beside_it(tmp_path):
    kept = nn.Linear(3, 3)
    for _ in (run := loop.Loop(tmp_path / "made", 0.002, loop.adamw([kept], 0.1), {"network": kept})):
        pass
    before = run.checkpoint.read_bytes()
    run.kept["network"] = nn.Linear(3, 3)
    run.kept["network"].register_state_dict_post_hook(lambda _, state, *rest: state.update(bad=lambda: None))
    run.minutes = 1e-9
    with pytest.raises((AttributeError, pickle.PicklingError), match="pickle"):
        list(run)
    assert run.checkpoint.read_bytes() == before
    assert [file.name for file in run.work.iterdir() if file.name.startswith("checkpoint")] == ["checkpoint.pt"]


def test_muon_takes_the_hidden_matrices_and_adamw_all_else(tmp_path):
    torch.manual_seed(2)  # of some draws a direction has next to no gradient
    hidden, head = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)), nn.Linear(4, 3)
    optimizer = loop.muon([hidden, head], [hidden], 0.1, weight_decay=0.5, hidden_rate=0.2)
    others, matrices = optimizer.optimizers
    assert [p.shape for p in matrices.param_groups[0]["params"]] == [(4, 4), (4, 4)]
    taken = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(taken) == sorted(id(p) for module in (hidden, head) for p in module.parameters())
    assert [(g["weight_decay"], g["lr"], len(g["params"])) for g in others.param_groups] == [(0.5, 0.1, 1), (0.0, 0.1, 5)]
    assert matrices.param_groups[0]["lr"] == 0.2
    before = hidden[0].weight.clone()
    loop.update(optimizer, head(hidden(torch.randn(8, 4))).square().mean())
    step = (hidden[0].weight - before * (1 - 0.2 * 0.5)) / 0.2
    assert torch.linalg.svdvals(step).min() > 0.05, "of a gradient that few directions rule, every direction is stepped in"


@pytest.mark.parametrize(
    ("convolution", "shape"),
    [
        (nn.Conv2d(4, 6, 8, stride=8), (2, 4, 16, 24)),
        (nn.Conv2d(4, 6, (2, 3), stride=(2, 3), bias=False), (2, 4, 4, 9)),
        (nn.Conv3d(3, 6, (2, 4, 4), stride=(2, 4, 4), bias=False), (2, 3, 4, 8, 12)),
    ],
)
def test_patches_are_projected_as_the_convolution_does(convolution, shape):
    network, inputs = nn.Sequential(convolution, nn.Conv2d(6, 6, 3)), torch.randn(shape)
    expected, names = network[0](inputs), list(network.state_dict())
    PatchProjection.replace_in(network)
    assert isinstance(network[0], PatchProjection) and isinstance(network[1], nn.Conv2d)
    assert list(network.state_dict()) == names
    torch.testing.assert_close(network[0](inputs), expected)


def test_a_picture_that_stands_for_all_frames_is_read_as_those_frames():
    convolution, picture = nn.Conv3d(3, 6, (2, 4, 4), stride=(2, 4, 4)), torch.randn(2, 3, 1, 8, 12)
    frames = picture.expand(-1, -1, 4, -1, -1)
    torch.testing.assert_close(PatchProjection(convolution)(frames), convolution(frames))


def test_codes_are_orthonormal_and_what_is_not_said_adds_nothing():
    codes = OrthogonalTargets({"concept": 5, "style": 3}, 16)
    others = OrthogonalTargets({"motion": 8}, 16, first=8)
    every = torch.cat([codes.tables[0].weight[:5], codes.tables[1].weight[:3], others.tables[0].weight[:8]])
    assert torch.allclose(every @ every.T, torch.eye(16), atol=1e-5)
    assert not any(parameter.requires_grad for parameter in codes.parameters())
    said = codes(torch.tensor([[2, 1], [2, sampling.IGNORED]]))
    assert torch.equal(said[0], codes.tables[0].weight[2] + codes.tables[1].weight[1])
    assert torch.equal(said[1], codes.tables[0].weight[2])
    with pytest.raises(ValueError, match="17 codes of 16 numbers"):
        OrthogonalTargets({"motion": 9}, 16, first=8)


def test_studies_to_play_are_phrases_and_variations_of_what_may_be_learned(small_world):
    world = sounds.SoundWorld(small_world)
    rows, waveforms = world.variations()
    told = [world.captioned[row] for row in rows.tolist()]
    varied = [sound for sound in told if sound.figure]
    assert {sound.split for sound in varied} == {"train"}
    assert len(varied) == sum(sound.split == "train" for sound in world.combinations if sound.register)
    assert len(told) - len(varied) == 2 * 3 * 8 and len(waveforms) == len(told)
    assert {world.captioned[row].name for row in world.variations(1)[0].tolist()} == {world.names[0]}


def test_sounds_from_outside_are_the_same_each_time_and_of_one_split_only(small_world, few_unknown_sounds):
    world = sounds.SoundWorld(small_world)
    splits = {split: UnknownSounds(world, split) for split in ("train", "heldout")}
    assert {kind for kind, _ in splits["train"].keys} == set(KINDS)
    assert not set(splits["train"].keys) & set(splits["heldout"].keys)
    for number in range(len(KINDS)):
        waveform = splits["train"].waveform(number)
        assert waveform.shape == (player.SAMPLES,) and np.abs(waveform).max() == pytest.approx(player.PEAK, abs=1e-3)
        assert np.array_equal(waveform, UnknownSounds(world, "train").waveform(number))


def test_augmented_sounds_come_late_and_unknown_ones_turn_round():
    energies = torch.full((2, 8, 40), -16.0)
    energies[:, 3, 5] = 5.0
    heard = torch.cat([spectrograms.augment(energies, -16.0, late=3) for _ in range(40)])
    there = heard.amax((1, 2)) > heard.mean((1, 2)) + 5  # the band may be lost
    assert 0.5 < there.float().mean() < 1
    bands, frames = (heard[there].amax(axis).argmax(1) for axis in (2, 1))
    assert set(bands.tolist()) == {2, 3, 4} and set(range(5, 9)) <= set(frames.tolist()) <= set(range(4, 11))
    turned = [spectrograms.begin_anywhere(energies) for _ in range(20)]
    assert all(torch.equal(each.sort(2).values, energies.sort(2).values) for each in turned)
    assert len({int(each[0, 3].argmax()) for each in turned}) > 5


def test_clips_from_outside_and_kept_clips_have_the_shape_and_range_of_clips(small_world):
    world = World(small_world)
    renderer, clips = Renderer(torch.from_numpy(world.art)), ClipWorld(world)
    outside = UnknownClips(UnknownPictures(world, "train", renderer, world.combinations("train")), clips)
    for count in (1, 2, 9):
        made = augment_clips(outside(count))
        assert made.shape == (count, 3, 8, 64, 64) and made.min() >= 0 and made.max() <= 1
    rows = torch.tensor([[1, 2]])
    kept = KeptClips(ClipRenderer(world, renderer), rows)
    still, shown = kept(2)
    assert torch.equal(shown, rows.expand(2, 2)) and torch.allclose(
        still[0], ClipRenderer(world, renderer)(rows)[0], atol=0.01
    )
    moved, _ = kept(60, shift=1)
    assert any(torch.equal(clip[..., :-1], still[0][..., 1:]) for clip in moved), "none went to the left"


@pytest.mark.slow
@pytest.mark.parametrize("modality", classifiers.CLASSIFIERS)
def test_a_classifier_learns_and_is_read_again(
    modality, small_world, tmp_path, monkeypatch, few_unknown_sounds, steady_clock
):
    words = f"classifier {modality} --world {small_world} --out {tmp_path} --minutes 0.3 --batch 16 --device cpu"
    monkeypatch.setattr("sys.argv", words.split())
    classifiers.main()
    log = json.loads((tmp_path / "training_log.json").read_text(encoding="utf-8"))
    read = classifiers.CLASSIFIERS[modality].from_pretrained(tmp_path)
    first = next(iter(read.labels))
    assert log["curve"][-1][first] < log["curve"][0][first]
    assert set(log["figures"]["dev"]) == {*read.labels, "unknown"}
    media = {"image": torch.rand(2, 3, 64, 64), "audio": torch.rand(2, 32000), "video": torch.rand(2, 3, 8, 64, 64)}
    assert [set(reading) for reading in read.read(media[modality])] == [set(read.labels)] * 2
    if modality == "audio":
        with pytest.raises(ValueError, match="two seconds at 16 kHz"):
            read.read(torch.zeros(1, 100))


def test_what_is_made_anew_is_told_only_as_far_as_it_is_true(small_world, few_unknown_sounds):
    """Transposed sounds keep their figure, phrases their register, and their instrument where the world knows it.

    Variations are told in full.
    """
    world = sounds.SoundWorld(small_world)
    taught = spectrograms.SoundSet(world, "train", audio_encoder.energies_of, 0.01, torch.device("cpu"))
    energies, targets = taught.draw(400)
    assert energies.shape == (400, 64, 192)
    untold = targets == sampling.IGNORED
    assert untold[:50, :2].all() and not untold[50:100, 0].any() and not untold[100:, 1].any()
    assert 0 < untold[100:, 0].sum() < 300 and untold[100:, 2][untold[100:, 0]].all() and not untold[100:, 2].all()
    step = torch.arange(32.0)[None, :, None].expand(3, -1, 4)
    risen = spectrograms.transpose(step).diff(dim=2)
    assert torch.allclose(risen, torch.zeros(()), atol=1e-5), "every frame moves alike"


def test_an_effect_is_heard_as_having_no_register_and_no_figure(small_world, few_unknown_sounds):
    taught = classifiers.Sounds(World(small_world), "train", None, torch.device("cpu"))
    drum = taught.sounds.targets[taught.sounds.targets[:, 0] == sounds.SoundWorld(small_world).names.index("drum")]
    names = list(taught.labels.values())
    assert [names[part][number] for part, number in enumerate(drum[0].tolist())] == ["drum", "none", "none"]


def test_a_classifier_of_another_shape_is_read_as_it_was_saved(tmp_path):
    labels = {"concept": ["apple", classifiers.UNKNOWN], "style": ["flat"]}
    made = classifiers.PictureClassifier(labels, {"fold": 1, "widths": [8, 16]}).eval()
    made.save_pretrained(tmp_path)
    pictures = torch.rand(4, 3, 64, 64)
    read = classifiers.PictureClassifier.from_pretrained(tmp_path)(pictures)
    assert torch.allclose(read["concept"], made(pictures)["concept"], atol=0.05)


def test_towers_made_apart_are_joined_into_one_encoder(tmp_path):
    small = {"vision_num_blocks": 1, "audio_num_blocks": 1}
    sees = ImageBind(encoder.new_config(**small)).bfloat16()
    hears = ImageBind(audio_encoder.new_config(**small)).bfloat16()
    sees.save_pretrained(tmp_path / "encoder")
    hears.save_pretrained(tmp_path / "audio_encoder")
    assemble.join_towers([tmp_path / "encoder", tmp_path / "audio_encoder"], tmp_path / "joined")
    joined = ImageBind.from_pretrained(tmp_path / "joined", dtype=torch.bfloat16)
    assert joined.modalities == ("image", "video", "audio")
    picture, sound = torch.rand(2, 3, 64, 64), torch.rand(2, 1, 1, 64, 192)
    assert torch.equal(joined.encode("image", picture), sees.encode("image", picture))
    assert torch.equal(joined.encode("audio", sound), hears.encode("audio", sound))
    lengths = torch.cat([joined.encode("image", picture), joined.encode("audio", sound)]).float().norm(dim=1)
    assert torch.allclose(lengths, torch.ones(4), atol=0.02), "one input projection serves both"


def test_the_package_gets_the_sounds_that_no_part_learned_from(small_world, tmp_path):
    whole = sounds.SoundWorld(small_world)
    whole.copy(tmp_path)
    copied = sounds.SoundWorld(tmp_path)
    every = [*whole.combinations, *whole.takes]
    kept = [sound for sound in every if sound.split != "train" or not sound.register]
    assert [sound for sound in every if copied.holds(sound)] == kept
    assert copied.takes == [sound for sound in kept if sound.take] != []
    for sound in kept:
        if sound.register:  # the drum here is noise, which Opus replaces by other noise
            assert np.corrcoef(copied.waveform(sound), whole.waveform(sound))[0, 1] > 0.95
    learned = [row for row in whole.rows("train").tolist() if whole.combinations[row].register]
    assert not copied.waveforms[learned].any() and copied.heard(whole.rows("heldout")).any(1).all()


def test_what_is_there_decides_what_the_model_takes_and_makes(small_world, tmp_path, monkeypatch):
    root, preset = tmp_path / "root", tmp_path / "preset"
    for part in ("encoder", "language_model", "image_decoder", "clip_decoder", "autoencoder"):
        (root / part).mkdir(parents=True)
        (root / part / "training_log.json").write_text("{}", encoding="utf-8")
    for decoder in ("image_decoder", "clip_decoder"):
        (root / decoder / "vae").mkdir()
        (root / decoder / "vae" / "config.json").write_text(decoder, encoding="utf-8")
    LlamaConfig(hidden_size=24, num_attention_heads=3).save_pretrained(root / "language_model")
    (root / "sound_decoder").mkdir()  # only begun
    (root / "world").symlink_to(small_world)
    (small_world / "ATTRIBUTION.md").write_text("# Where\n", encoding="utf-8")
    preset.mkdir()
    assemble.assemble_frozen(root, preset)
    shutil.rmtree(root / "language_model")  # the preset's own counts
    monkeypatch.chdir(root / "encoder")  # from wherever the stages are started
    config = NextGPTConfig.from_pretrained(root / "model")
    assert config.input_modalities == list(config.decoders) == ["image", "video"]
    assert config.text_config.hidden_size == 24 and config.language_model["source"].startswith(".")
    assert not (preset / "sound_decoder").exists() and not (preset / "world" / "takes.npz").exists()
    (shared,) = sources.shared_components(preset / "clip_decoder").values()
    assert (shared / "config.json").read_text(encoding="utf-8") == "image_decoder"
    assert not (preset / "clip_decoder" / "vae").exists()
    assert {"things", "motions"} < (known := known_world(preset)).keys() and "sounds" not in known
    (preset / "large.safetensors").write_bytes(bytes(assemble.MOST_FILE_BYTES + 1))
    with pytest.raises(ValueError, match="large.safetensors"):
        assemble.check_sizes(preset)


@pytest.mark.slow
def test_the_audio_tower_learns_to_tell_sounds_apart(small_world, tmp_path, monkeypatch, few_unknown_sounds, steady_clock):
    words = f"audio_encoder --world {small_world} --out {tmp_path / 'made'} --minutes 0.3 --batch 24 --device cpu"
    monkeypatch.setattr("sys.argv", words.split())
    audio_encoder.main()
    log = json.loads((tmp_path / "made" / "training_log.json").read_text(encoding="utf-8"))
    assert log["curve"][-1]["instrument"] < log["curve"][0]["instrument"]
    assert set(log["figures"]["dev"]) == {"instrument", "register", "figure", "unknown"}
    assert ImageBind.from_pretrained(tmp_path / "made").modalities == ("audio",)


def test_ridge_regression_finds_a_linear_map_and_shrinks_what_it_cannot_be_sure_of():
    torch.manual_seed(0)
    inputs, weight, bias = torch.randn(200, 5), torch.randn(3, 5), torch.randn(3)
    targets = inputs @ weight.T + bias
    found = initial.ridge_regression(inputs, targets, ridge=1e-9)
    torch.testing.assert_close(found, (weight, bias), atol=1e-4, rtol=1e-4)
    shrunk, mean = initial.ridge_regression(inputs, targets, ridge=1e6)
    assert shrunk.abs().max() < 1e-3
    torch.testing.assert_close(mean, targets.mean(0), atol=1e-2, rtol=1e-2)


def test_the_model_begins_with_what_its_language_model_can_read_and_with_its_marks(monkeypatch):
    given = NextGPTConfig.from_pretrained("nano")
    config = NextGPTConfig(**given.to_dict() | {"input_modalities": ["image"]}, name_or_path=str(given.base_folder))
    monkeypatch.setattr(initial, "true_media", lambda *of: true_media(*of)[::8])
    world = preset_folder("nano") / "world"
    model = initial.begin(config, world)
    tokenizer = AutoTokenizer.from_pretrained(preset_folder("nano") / "language_model")
    table = model.get_input_embeddings().weight.detach()
    ids = tokenizer.convert_tokens_to_ids(["<picture>", *corpus.MASKS[:3], "<sound>"])
    assert torch.equal(model.signal_rows.input[:5], table[ids]) and torch.equal(model.signal_rows.output[:5], table[ids])
    # Pictures of combinations that it did not begin with lie nearest to what they show.
    setting, true = load_composer(world, "dev").setting, TrueMedia(World(world), "dev")
    media = combinations(setting, "image")[::2]
    read = model.input_projection(initial.embed_media(model.encoder, "image", map(true.render, media)))
    nearest = torch.cdist(read, initial.caption_sums(media, tokenizer, table)).argmin(1)
    right = (nearest == torch.arange(len(media))).float().mean()
    assert right > 0.6, f"{right:.0%} of {len(media)} pictures"
