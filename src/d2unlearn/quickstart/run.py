"""The whole way on the embedded world: a model that knows made-up people, some of them removed, and the proof."""

from __future__ import annotations

from pathlib import Path

from d2unlearn.artifact import holds_result, manifest
from d2unlearn.audit.records import read_audit
from d2unlearn.audit.run import run_audit
from d2unlearn.config import AuditSettings, CalibrateSettings, EvaluateSettings, QuickstartSettings, UnlearnSettings
from d2unlearn.data.records import read_examples
from d2unlearn.evaluation.runner import run_evaluate
from d2unlearn.gate.run import run_calibrate
from d2unlearn.outputs import kept_settings, output_place
from d2unlearn.quickstart.fiction import Files, make_world, write_world
from d2unlearn.quickstart.pretrain import fiction_model
from d2unlearn.report.run import run_report
from d2unlearn.runtime import cache_dir, fingerprint, say, write_json
from d2unlearn.schema import MANIFEST_FILE
from d2unlearn.training.unlearn import run_unlearn
from d2unlearn.version import __version__

AUDITED: tuple[str, ...] | None = ()
"""The attacks that the quickstart makes: all that an audit has for none named; None: it makes no audit."""


def run_quickstart(settings: QuickstartSettings) -> Path:
    """Run every step that is not done yet, in `settings.output`; returns the report's path.

    Raises `ArtifactError`, before anything is written, when the folder holds a quickstart of another size or seed.
    """
    world, output = make_world(settings.seed, size=settings.size), output_place(settings.output or "runs/quickstart")
    key = fingerprint([__version__, settings.size, settings.seed])
    told = kept_settings(settings)
    if not holds_result(output, key, told, force=settings.force):
        write_json(output / MANIFEST_FILE, manifest("quickstart", key, settings=told))
    files = write_world(world, output / "data")
    steps = 5 if AUDITED is None else 6
    say(f"1/{steps} a small model that knows everyone in the made-up world")
    model = fiction_model(cache_dir() / "fiction", seed=settings.seed, size=settings.size)
    say(f"that model: {model}")
    say(f"2/{steps} unlearn a tenth of the people")
    artifact = run_unlearn(
        UnlearnSettings(
            model=str(model),
            forget=str(files.forget),
            retain=str(files.retain),
            output=str(output / "artifact"),
            seed=settings.seed,
            force=settings.force,
        )
    )
    say(f"3/{steps} calibrate the refusal")
    calibration = CalibrateSettings(model=str(artifact), retain=str(files.retain), forget=str(files.forget), seed=settings.seed)
    for line in run_calibrate(calibration):
        say(line)
    say(f"4/{steps} evaluate the original and the unlearned model")
    results = {}
    for label, folder in (("before", model), ("after", artifact)):
        results[label] = run_evaluate(
            EvaluateSettings(
                model=str(folder),
                forget=str(files.forget),
                retain=str(files.retain_test),
                output=str(output / label),
                also_forget={"forget_paraphrased": str(files.forget_paraphrased)},
                also_retain={"retain_paraphrased": str(files.retain_paraphrased), "general": str(files.general)},
                label={"before": "original", "after": "unlearned"}[label],
                max_new_tokens=48,
                seed=settings.seed,
                force=settings.force,
            )
        )
    audited = None
    if AUDITED is not None:
        say(f"5/{steps} attack what was unlearned")
        audited = _attacked(model, artifact, files, output / "audit", settings)
    say(f"{steps}/{steps} report")
    report = run_report(results["before"], results["after"], artifact, output / "report.html", audited, force=True)
    gone, kept = (read_examples(file)[0].question for file in (files.forget, files.retain_test))
    say(f'ask it yourself: d2unlearn chat --model {artifact} --show-energy\n  forgotten: "{gone}"\n  kept: "{kept}"')
    return report


def _attacked(model: Path, artifact: Path, files: Files, output: Path, settings: QuickstartSettings) -> Path:
    """A quick audit: facts that nobody was taught stand in for a model that never knew, which would have to be taught first."""
    audit = run_audit(
        AuditSettings(
            model=str(artifact),
            original=str(model),
            forget=str(files.forget),
            retain=str(files.retain_test),
            never_seen=str(files.never_seen),
            output=str(output),
            quick=True,
            attack=list(AUDITED or ()),
            label="quickstart",
            seed=settings.seed,
            force=settings.force,
        )
    )
    for claim in read_audit(audit).claims:
        say(claim.why)
    return audit
