"""What an artifact carries for those who do not have this package: a copy of the gate, the code that reads it, and a note.

config.json           the copy, under `d2_gate`: for this code and for engines that read the configuration
custom_generate/      `generate` with the gate in it, made from this package's own source; transformers puts it in the place of
                      the model's own when it is loaded with `trust_remote_code=True`
README.md             what is on, and with what it is off

All three are made from `d2_gate.json`, which stays the truth, and are made again whenever a gate is saved.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from d2unlearn.data.template import Template
from d2unlearn.errors import GateError
from d2unlearn.gate.copied import check_copy, sealed
from d2unlearn.gate.decoding import id_list
from d2unlearn.gate.rule import GateRule, refusal_tokens, rule_to_json
from d2unlearn.models import load_tokenizer, pad_token_id
from d2unlearn.runtime import atomic_write, read_json, write_json
from d2unlearn.schema import GATE_COPY, GATE_FILE
from d2unlearn.template_date import pinned
from d2unlearn.version import __version__

FOLDER = "custom_generate"
README = "README.md"
_TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja")
_TOKENIZER_CONFIG = "tokenizer_config.json"
BEGIN, END = "<!-- d2unlearn: gate -->", "<!-- d2unlearn: end -->"
"""Marks of the note: at the end of its first line, and on its last."""

REQUIREMENTS = "torch\ntransformers>=5.19\nnumpy\n"

MODULES: Mapping[str, tuple[str, ...]] = {
    "errors": ("D2Error", "ConfigError", "ModelError", "GateError"),
    "runtime": ("fingerprint",),
    "stats": ("Floats",),
    "refusals": ("content_seed", "refusal_index"),
    "schema": ("GATE_FILE", "GATE_COPY"),
    "models": ("ONE_ANSWER", "generate_of", "generate_plainly"),
    "observation": ("causal_model",),
    "energy": ("free_energy", "logsumexp", "check_temperature", "at_least_float32"),
    "data.batching": ("pad_left", "by_tokens"),
    "gate.copied": (),
    "gate.score": (),
    "gate.recorder": (),
    "gate.probes": (),
    "gate.rule": (),
    "gate.online": (),
    "gate.criteria": (),
    "gate.beams": (),
    "gate.streams": (),
    "gate.decoding": (),
    "gate.weights": (),
    "gate.gated": (),
    "generation.carried_generate": (),
}
"""The modules that the carried code is made of, each with the names that are taken of it; none: all of it."""


def carry(folder: Path, rule: GateRule, refusal_texts: tuple[str, ...], template: str, weights: str, guarantee: str) -> None:
    """Write all three into a model's folder, which holds its gate's file.

    `template`: fingerprint of the one that was calibrated; `weights`: their hash. Raises `GateError` when its tokenizer
    renders prompts otherwise, `ModelError` when it has none.
    """
    tokenizer = load_tokenizer(folder)
    own = Template(tokenizer)
    if own.fingerprint != template:
        raise GateError(f"the tokenizer in {folder} renders prompts differently than when the gate was calibrated; recalibrate")
    tokens = refusal_tokens(own.text_ids, refusal_texts, _end_ids(folder, tokenizer), pad_token_id(tokenizer))
    carried = custom_generate()
    for name, text in carried.items():
        atomic_write(folder / FOLDER / name, text)
    for stale in (path for path in (folder / FOLDER).glob("*.py") if path.name not in carried):
        stale.unlink()  # of an earlier version
    config = read_json(folder / "config.json")
    copy = {**rule_to_json(rule, tokens), "template": template, "weights_hash": weights, "version": __version__}
    gate = read_json(folder / GATE_FILE)
    copy |= {"bound": gate.get("bound", {})}
    write_json(folder / "config.json", {**config, GATE_COPY: sealed(copy, gate["checksum"])})
    atomic_write(folder / README, _with_note(_text(folder / README), note(guarantee)))


def pin_templates(folder: Path, date: str) -> bool:
    """Fix the date in those of a folder's own chat templates that write one, so that whoever renders prompts with them asks
    every day what was calibrated. Returns whether there was any that was not fixed before; `unlearn` leaves none.
    """
    found = False
    for path in (path for pattern in _TEMPLATES for path in sorted(folder.glob(pattern))):
        written = pinned(_text(path), date)
        if written != _text(path):
            atomic_write(path, written)
            found = True
    config = read_json(folder / _TOKENIZER_CONFIG) if (folder / _TOKENIZER_CONFIG).is_file() else {}
    own = config.get("chat_template")
    within = pinned(own, date) if isinstance(own, str) else own
    if isinstance(own, list):
        within = [{**each, "template": pinned(each["template"], date)} for each in own]
    if within != own:
        write_json(folder / _TOKENIZER_CONFIG, {**config, "chat_template": within})
    return found or within != own


def is_carried(folder: Path) -> bool:
    """Whether a folder holds all three, and the code that this version writes."""
    code = all(_text(folder / FOLDER / name) == text for name, text in custom_generate().items())
    copy = read_json(folder / "config.json").get(GATE_COPY)
    if not code or END not in _text(folder / README) or not isinstance(copy, dict) or "checksum" not in copy:
        return False
    try:
        check_copy(copy, folder)
    except GateError:
        return False
    return True


def custom_generate() -> dict[str, str]:
    """The files of `custom_generate/`, by name."""
    modules = {f"{_short(module)}.py": _carried(module, names) for module, names in MODULES.items()}
    return {**modules, "requirements.txt": REQUIREMENTS}


def note(guarantee: str) -> str:
    """What a person who finds the folder should know first."""
    return f"""\
**The gate is off unless this model is loaded with `trust_remote_code=True`, or with `d2unlearn`.** {BEGIN}

Without its gate this model answers requests that it was made to refuse. The gate refuses requests for what was unlearned; it
was calibrated so that {guarantee}.

Guarded:

```python
from d2unlearn import GuardedModel
GuardedModel.from_pretrained("this folder").answer(["..."])

from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained("this folder", trust_remote_code=True).generate(**inputs)
```

and `d2unlearn serve`, `transformers serve --trust-remote-code` (`--continuous-batching` is turned down), and vLLM with
`--logits-processors d2unlearn.generation.vllm_plugin:EnergyGateLogitsProcessor`.

Not guarded: everything else, in particular transformers without `trust_remote_code` and what is converted from these weights
(GGUF). Weights that are tuned or quantised afterwards need `d2unlearn calibrate` again: stored prompts tell, and the gate then
refuses to run. `{GATE_COPY}` in config.json is a copy of d2_gate.json.
{END}
"""


def _end_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end an answer: those of the folder's generation configuration, else the tokenizer's."""
    path = folder / "generation_config.json"
    configured = read_json(path).get("eos_token_id") if path.is_file() else None
    return id_list(tokenizer.eos_token_id if configured is None else configured)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _with_note(readme: str, text: str) -> str:
    """The note on top, below metadata; in the place of an earlier one."""
    rest = re.sub(rf"[^\n]*{re.escape(BEGIN)}.*?{re.escape(END)}\n*", "", readme, flags=re.DOTALL)
    metadata = re.match(r"---\n.*?\n---\n+", rest, flags=re.DOTALL)
    head = metadata.group() if metadata else ""
    below = rest[len(head) :]
    return f"{head}{text}" + (f"\n{below}" if below.strip() else "")


def _carried(module: str, names: tuple[str, ...]) -> str:
    """A module's source, or those of its definitions that are named, with this package's imports made relative."""
    source = (files("d2unlearn") / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    body = _chosen(source, names) if names else source
    header = f"# Made from d2unlearn/{module.replace('.', '/')}.py by d2unlearn {__version__}. Calibration writes it again.\n"
    return header + re.sub(r"^from d2unlearn\.([\w.]+) import", _relative, body, flags=re.MULTILINE)


def _relative(match: re.Match[str]) -> str:
    return f"from .{_short(match.group(1))} import"


def _short(module: str) -> str:
    """The name in the carried folder, where transformers asks for `generate`."""
    return module.rpartition(".")[2].removeprefix("carried_")


def _chosen(source: str, names: tuple[str, ...]) -> str:
    """The imports that they need, and the definitions that are named, in the order of the source."""
    tree = ast.parse(source)
    kept = [node for node in tree.body if _name(node) in names]
    missing = set(names) - {_name(node) for node in kept}
    if missing:
        raise ValueError(f"no definition of {', '.join(sorted(missing))}")
    used = {node.id for definition in kept for node in ast.walk(definition) if isinstance(node, ast.Name)}
    imports = [text for node in tree.body for text in _imports(node, used)]
    head = "\n".join(["from __future__ import annotations", "", *imports]).rstrip()
    return "\n\n\n".join([head, *(str(ast.get_source_segment(source, node)) for node in kept)]) + "\n"


def _name(node: ast.stmt) -> str | None:
    """What a statement at the top of a module defines."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return node.name if isinstance(node, ast.FunctionDef | ast.ClassDef) else None


def _imports(node: ast.stmt, used: set[str]) -> Iterator[str]:
    """An import with only the names that are used."""
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return
    wanted = [alias for alias in node.names if (alias.asname or alias.name).partition(".")[0] in used]
    if wanted:
        changed: Any = ast.Import(wanted) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, wanted, node.level)
        yield ast.unparse(changed)
