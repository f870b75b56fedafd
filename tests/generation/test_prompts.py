"""Prompts of samples: what they change and what they do not, where their features come from, and what is refused."""

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from generation.prompted import CHANNELS, PROMPTS, TEXT, TOKENS, write_text_checkpoint
from generation.sampled import write_checkpoint
from parity import relative_error
from PIL import Image
from text.tiny import CAPTIONS, tiny_text_encoder

from sparsevid.generation import GenerationError
from sparsevid.generation.job import generate
from sparsevid.generation.pipeline import VideoPipeline
from sparsevid.generation.prompts import read_prompts
from sparsevid.text.encoder import EncodedText, TextEncoder

GUIDED = {"guidance": 3.0, "steps": 3}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_text_checkpoint(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def pipeline(checkpoint) -> VideoPipeline:
    return VideoPipeline.from_pretrained(checkpoint, device="cpu")


@pytest.fixture
def loaded(monkeypatch) -> list:
    """Encoders that are loaded, by weak references."""
    found, load = [], TextEncoder.from_pretrained.__func__

    def noted(cls, *args, **options):
        encoder = load(cls, *args, **options)
        found.append(weakref.ref(encoder))
        return encoder

    monkeypatch.setattr(TextEncoder, "from_pretrained", classmethod(noted))
    return found


def latents_of(pipeline: VideoPipeline, indices=(0, 1, 2), **options) -> torch.Tensor:
    return pipeline.denoise(list(indices), pipeline.sampling(**{"prompts": PROMPTS} | GUIDED | options))


def test_prompts_go_round_as_classes_do(pipeline):
    sampling = pipeline.sampling(prompts=PROMPTS)
    assert [sampling.prompt(index) for index in range(4)] == [*PROMPTS, PROMPTS[0]]
    assert pipeline.sampling(prompts="rain").prompts == ("rain",)
    clips = latents_of(pipeline, range(4))
    assert torch.equal(clips[1:2], latents_of(pipeline, range(4), prompts=[*PROMPTS, "a taxi"])[1:2])
    assert not torch.allclose(clips[3], latents_of(pipeline, range(4), prompts=[*PROMPTS, "a taxi"])[3])


@pytest.mark.parametrize(
    "options",
    [
        {},
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ({"null_mask": "prompt"}, {"negative": "a"}, {"guidance": 1.0})
        ),
    ],
    ids=str,
)
def test_a_clip_depends_neither_on_its_batch_nor_on_other_prompts(pipeline, options):
    together = latents_of(pipeline, **options)
    alone = torch.cat([latents_of(pipeline, [index], **options) for index in range(3)])
    assert relative_error(alone, together) < 1e-5
    long = " ".join(["road"] * (TOKENS - 1))
    assert relative_error(latents_of(pipeline, prompts=[PROMPTS[0], long, long], **options)[:1], together[:1]) < 1e-5


def test_heard_padding_makes_a_clip_depend_on_its_batch(pipeline):
    together = latents_of(pipeline, padding="heard")
    assert relative_error(latents_of(pipeline, [0], padding="heard"), together[:1]) > 1e-3


def test_what_guidance_compares_with_is_what_is_named(pipeline):
    """The file's is the empty text's here, cut to its own tokens; each other choice is another sample."""
    plain = latents_of(pipeline)
    assert torch.equal(plain, latents_of(pipeline, null_caption="file", null_mask="own", padding="masked"))
    assert relative_error(latents_of(pipeline, null_caption="encoded"), plain) < 1e-5
    assert relative_error(latents_of(pipeline, negative=""), plain) < 1e-5
    for change in ({"null_mask": "prompt"}, {"negative": "rain"}, {"padding": "heard"}, {"guidance": 2.0}):
        assert not torch.allclose(latents_of(pipeline, **change), plain), change
    none = {"guidance": 1.0, "null_caption": "encoded", "null_mask": "prompt"}
    assert torch.equal(latents_of(pipeline, **none), latents_of(pipeline, guidance=1.0))
    assert pipeline.sampling(prompts=PROMPTS, negative="rain", guidance=2.0).null_mask == "own"


def test_the_run_says_which_tokens_of_no_prompt_are_heard(tmp_path):
    pipeline = VideoPipeline.from_pretrained(write_text_checkpoint(tmp_path, **{"text.null_mask": "prompt"}), device="cpu")
    assert pipeline.sampling(prompts=PROMPTS, guidance=2.0).null_mask == "prompt"
    assert pipeline.sampling(prompts=PROMPTS, guidance=2.0, negative="rain").null_mask == "own"
    without = VideoPipeline.from_pretrained(
        write_text_checkpoint(tmp_path / "none", replace(TEXT, null_caption=False)), device="cpu"
    )
    assert without.sampling(prompts=PROMPTS, guidance=2.0).null_caption == "encoded"
    with pytest.raises(ValueError, match="the model's file holds no features of 'no prompt'; accepted is encoded"):
        without.sampling(prompts=PROMPTS, guidance=2.0, null_caption="file")


def test_the_encoder_is_loaded_once_for_what_is_not_known_and_is_gone_when_the_model_runs(checkpoint, loaded):
    pipeline = VideoPipeline.from_pretrained(checkpoint, device="cpu")
    pipeline.sampling(prompts=PROMPTS)
    assert not loaded
    gone = []
    options = {"prompts": PROMPTS, "batch": 1, "show_progress": False, "steps": 2, "guidance": 2.0, "null_caption": "encoded"}
    pipeline(3, on_step=lambda *_: gone.append(loaded[0]() is None), **options)
    assert len(loaded) == 1 and gone == [True] * 6
    pipeline(3, **options)
    assert len(loaded) == 1
    pipeline(1, **(options | {"prompts": "a green taxi"}))
    assert len(loaded) == 2


def test_an_encoder_that_is_given_is_kept(checkpoint, loaded):
    own = TextEncoder.from_pretrained(checkpoint.parent / "t5", tokens=TOKENS, device="cpu")
    pipeline = VideoPipeline.from_pretrained(checkpoint, device="cpu", text_encoder=own)
    assert torch.equal(latents_of(pipeline), latents_of(VideoPipeline.from_pretrained(checkpoint, device="cpu")))
    gc.collect()
    assert [each() is own for each in loaded] == [True, False]


def test_features_that_are_known_need_no_encoder(pipeline, checkpoint):
    encoded = TextEncoder.from_pretrained(checkpoint.parent / "t5", tokens=TOKENS, device="cpu")(["", *PROMPTS])
    alone = VideoPipeline(pipeline.model, pipeline.autoencoder, pipeline.config, pipeline.schedule)
    alone.prompts.source = None
    alone.remember(["", *PROMPTS], encoded)
    for options in ({}, {"null_caption": "encoded"}):
        assert torch.equal(latents_of(alone, **options), latents_of(pipeline, **options))
    with pytest.raises(ValueError, match=r"no text encoder is known for the prompt 'fog': give text_encoder=SOURCE \(--text-e"):
        alone.sampling(prompts=["rain", "fog"])
    short = EncodedText(encoded.text[..., :3], encoded.mask, encoded.cut)
    with pytest.raises(GenerationError, match="features of 3 channels, the model takes 10"):
        alone.remember(["", *PROMPTS], short)
    with pytest.raises(ValueError, match=r"1 captions have features \(1, L, C\)"):
        alone.remember(["rain"], encoded)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"prompts": None}, r'the model is of text and needs prompts: prompts=\["…"\], in commands --prompts'),
        ({"prompts": []}, "no prompt is given"),
        ({"prompts": [3]}, "a prompt = 3; it is a text"),
        ({"classes": ["walk"]}, "classes were given, but the model is of text"),
        ({"negative": 3}, "negative = 3; it is a text"),
        ({"negative": "rain", "guidance": 1.0}, "negative = 'rain' has no effect without guidance"),
        ({"negative": "rain", "null_caption": "file"}, "guidance compares with one of both"),
        ({"null_caption": "empty"}, "null_caption = 'empty'; accepted are file, encoded"),
        ({"null_mask": "both"}, "null_mask = 'both'; accepted are own, prompt"),
        ({"padding": "cut"}, "padding = 'cut'; accepted are masked, heard"),
        ({"padding": "heard", "null_mask": "own"}, "with padding='heard' there is no mask"),
        ({"guidance_channels": 9}, "1 to 4 channels"),
    ],
)
def test_settings_of_prompts_that_cannot_be_are_named(options, reason, pipeline):
    with pytest.raises(ValueError, match=reason):
        pipeline.sampling(**{"prompts": PROMPTS, "guidance": 2.0} | options)


def test_models_without_text_take_no_prompts(tmp_path):
    of_classes = VideoPipeline.from_pretrained(write_checkpoint(tmp_path / "classes"), device="cpu")
    for options, reason in (
        ({"prompts": "rain"}, "prompts: the model has 3 classes and takes no prompts"),
        ({"prompts": ["rain"], "padding": "heard"}, "prompts, padding: the model has 3 classes and"),
    ):
        with pytest.raises(ValueError, match=reason):
            of_classes.sampling(**options)
    with pytest.raises(ValueError, match="captions were given, but the model is not of text"):
        of_classes.remember(["rain"], EncodedText(torch.zeros(1, 2, 3), torch.ones(1, 2), (0,)))


def test_guidance_needs_captions_that_were_dropped(tmp_path):
    never = VideoPipeline.from_pretrained(write_text_checkpoint(tmp_path, **{"objective.label_dropout": 0}), device="cpu")
    with pytest.raises(ValueError, match=r"objective.label_dropout=0, and never saw 'no prompt', .* accepted is 1"):
        never.sampling(prompts="rain", guidance=2.0)


def test_encoders_that_are_missing_or_of_another_model_are_named(checkpoint, tmp_path):
    moved = VideoPipeline.from_pretrained(checkpoint, device="cpu", text_encoder=str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"there is no text encoder in /.*gone, as the model's should be: give text_"):
        moved.sampling(prompts="rain")
    (tmp_path / "empty").mkdir()
    other = tiny_text_encoder(tmp_path / "other", channels=6)
    for source, reason in (
        (tmp_path / "empty", "prompts cannot be encoded: text encoder: .*empty has no config.json"),
        (other, r"gives features of 6 channels, the model takes 10: it was trained with another encoder"),
    ):
        wrong = VideoPipeline.from_pretrained(checkpoint, device="cpu", text_encoder=str(source))
        with pytest.raises(GenerationError, match=reason):
            wrong(1, prompts="rain", show_progress=False)


def test_too_long_prompts_are_cut_with_a_warning(pipeline, caplog):
    long = " ".join(["frog"] * (TOKENS + 4))
    assert torch.equal(latents_of(pipeline, [0], prompts=long), latents_of(pipeline, [0], prompts=f"{long} rain"))
    assert f"1 of 1 prompts are longer than {TOKENS} tokens: 5 tokens are cut off" in caplog.text


def test_prompts_of_a_command_come_from_files_too(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa frog\n\n  a taxi  \nrain\n", encoding="utf-8")
    assert read_prompts(["a road", str(file), ""]) == ["a road", "a frog", "a taxi", "rain", ""]
    assert read_prompts(["x" * 5000]) == ["x" * 5000]
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00rain")
    for name, error, reason in (
        ("gone.txt", FileNotFoundError, "there is no file .*gone.txt"),
        ("blank.txt", ValueError, "has no line with a prompt"),
        ("bytes.txt", ValueError, "is no text in UTF-8"),
    ):
        with pytest.raises(error, match=reason):
            read_prompts([str(tmp_path / name)])


def test_a_job_says_its_prompts_and_goes_on_with_the_same_ones(checkpoint, pipeline, tmp_path, loaded):
    def job(num: int, formats=("mp4", "ffv1", "frames"), source=pipeline, **options):
        settings = source.sampling(**{"prompts": PROMPTS, "steps": 2, "batch": 2, "guidance": 2.0} | options)
        return generate(source, settings, num, tmp_path / "out", formats, show_progress=False)

    assert job(2).written == 2
    report = job(3)
    assert (report.written, report.there) == (1, 3)
    said = json.loads((tmp_path / "out" / "samples.json").read_text(encoding="utf-8"))["settings"]
    assert said["prompts"] == list(PROMPTS) and (said["null_caption"], said["null_mask"]) == ("file", "own")
    t5 = TextEncoder.from_pretrained(checkpoint.parent / "t5", tokens=TOKENS, device="cpu")
    assert said["text_encoder"] == t5.fingerprint() and said["classes"] == []
    for change in ({"prompts": PROMPTS[:2]}, {"negative": "fog"}, {"null_mask": "prompt"}, {"padding": "heard"}):
        with pytest.raises(GenerationError, match=f"holds clips of other settings: .*{next(iter(change))} is "):
            job(3, **change)
    before = len(loaded)
    other = VideoPipeline.from_pretrained(
        checkpoint, device="cpu", text_encoder=str(tiny_text_encoder(tmp_path / "t5", channels=CHANNELS, seed=1))
    )
    with pytest.raises(GenerationError, match="text_encoder is "):
        job(3, source=other)
    assert job(3, source=VideoPipeline.from_pretrained(checkpoint, device="cpu")).written == 0
    assert len(loaded) == before  # a job that has nothing to do loads no encoder
    for path in ("mp4/000001.mp4", "ffv1/000001.mkv"):
        with av.open(str(tmp_path / "out" / path)) as file:
            assert file.metadata["title"] == PROMPTS[1]
    with Image.open(tmp_path / "out" / "frames" / "000002" / "000000.png") as image:
        assert image.text["Title"] == PROMPTS[2]
    assert (tmp_path / "out" / "contact_sheet.png").is_file()


def test_of_many_prompts_that_are_others_the_first_is_named(pipeline, tmp_path):
    def job(prompts):
        generate(pipeline, pipeline.sampling(prompts=prompts, steps=1), 1, tmp_path / "out", ("npz",), show_progress=False)

    many = [f"rain, take {number}" for number in range(200)]
    job(many)
    for other, said in (
        ([*many[:150], "fog", *many[151:]], r"prompts\[150\] is 'rain, take 150' of 200 there and 'fog' of 200 here\."),
        (many[:150], r"prompts are 200 there and 150 here\."),
    ):
        with pytest.raises(GenerationError, match=f"out holds clips of other settings: {said}"):
            job(other)


def test_prompts_of_several_lines_and_of_any_script_are_shown(pipeline, tmp_path):
    prompts = ["a frog\nin the rain", "青い猫 и 🐸"]
    settings = pipeline.sampling(prompts=prompts, steps=1, batch=2)
    assert settings.caption(0, ()) == "a frog in the rain"
    generate(pipeline, settings, 2, tmp_path / "out", ("mp4",), show_progress=False)
    with av.open(str(tmp_path / "out" / "000001.mp4")) as file:
        assert file.metadata["title"] == prompts[1]
    (saved,) = pipeline.save(torch.zeros(1, 3, 4, 16, 24, dtype=torch.uint8), tmp_path / "saved", "ffv1", prompts=prompts[1])
    with av.open(str(saved)) as file:
        assert file.metadata["title"] == prompts[1]


@pytest.mark.parametrize("objective", ["diffusion", pytest.param("flow", marks=pytest.mark.slow)])
def test_samplers_see_prepared_prompts_and_tell_each_step(objective, tmp_path):
    spec = replace(TEXT, learn_sigma=objective == "diffusion")
    pipeline = VideoPipeline.from_pretrained(write_text_checkpoint(tmp_path, spec, objective), device="cpu")
    prepared, steps = [], []
    prepare = pipeline.model.prepare_text
    pipeline.model.prepare_text = lambda *args: prepared.append(args) or prepare(*args)
    sampler = "heun" if objective == "flow" else "ddpm"
    options = {"prompts": CAPTIONS, "sampler": sampler, "steps": 3, "batch": 2, "guidance": 2.0, "show_progress": False}
    pipeline(4, on_step=lambda step, u, x: steps.append(step), **options)
    assert steps == [0, 1, 2] * 2 and len(prepared) == 4  # of each batch prompts, and no prompt
