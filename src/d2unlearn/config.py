"""Run configurations: one frozen dataclass a verb, filled from one YAML file and from the command line over it.

A field says all that there is to say of a setting: its type and default, the bound that its values keep (`Limit`), whether a
result depends on it (`INCIDENTAL`), what `--help` says of it (a string) and how it is given there (`Flag`, `Metavar`,
`Default`, `Group`). All mistakes are reported together; a key that no field has is refused, with the nearest one named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import yaml

from d2unlearn.errors import ConfigError
from d2unlearn.fields import (
    ABOVE_ZERO,
    AT_LEAST_TWO,
    COMMAS,
    COUNT,
    INCIDENTAL,
    LATER,
    MODEL,
    PORT,
    PROPER_SHARE,
    RANK,
    SEED,
    SHARE,
    ZERO_OR_MORE,
    Default,
    Flag,
    Group,
    Incidental,
    Later,
    Limit,
    Metavar,
    flag_of,
    marker_of,
    one_of,
    typed,
)
from d2unlearn.yaml_text import read_values

Settings = TypeVar("Settings")

_FILE, _FOLDER, _JSONL, _NAMED_FILE = (Metavar(text) for text in ("FILE", "FOLDER", "FILE.jsonl", "NAME=FILE"))
ITS_FOLDER = Default("its folder")
BENCHMARKS = ("tofu", "muse", "wmdp", "lume", "years")
BENCHMARK = Group("A benchmark of the field")
TRAINING = Group("How all of them are trained")
TARGETS = Group("A recipe that measures")
WHERE = Group("Where runs are done")
PLANNED = Group("What it will need")

RowFiles = str | list[str]
"""One data set, or several that are read one after the other as one."""
Seed = Annotated[int, SEED, "Seed of everything that is drawn."]
Dtype = Annotated[str, "float32, bfloat16, float16, or auto: as the weights were saved."]
RowLimit = Annotated[int | None, COUNT, "At most so many rows of each set."]
Columns = Annotated[
    dict[str, str],
    INCIDENTAL,
    COMMAS,
    Metavar("NAME=HEADING,..."),
    "The files' own headings: question=Frage,answer=Antwort.",
]
GroupSize = Annotated[
    int | None, COUNT, Metavar("N"), "Blocks of N rows belong together (TOFU: 20), where no column `group` says so."
]
AnswerLength = Annotated[int | None, COUNT, Default("what the gate was calibrated for; raw 128"), "Longest answer."]
AlsoForget = Annotated[dict[str, str], INCIDENTAL, _NAMED_FILE, "A further set that should be gone."]
AlsoRetain = Annotated[dict[str, str], INCIDENTAL, _NAMED_FILE, "A further set to keep."]
SystemMessage = Annotated[str | None, Metavar("TEXT"), "The deployment's system message; @FILE reads it from there."]
RefusalsFile = Annotated[
    str | None, _FILE, Default("the gate's own"), "YAML of what refusals say by topic and language; or `languages`."
]
Epochs = Annotated[float | str, ABOVE_ZERO.or_auto, "Passes over the forget rows, or auto: 10, more for few."]
Accumulation = Annotated[int | str, COUNT.or_auto, "Batches that make one update, or auto: 1 to 4 by size."]
MaxLength = Annotated[int, AT_LEAST_TWO, "Tokens of the longest row that is read whole, or the model's context."]
Force = Annotated[bool, INCIDENTAL, Flag("--force"), "Replace what other inputs or settings made at the output."]
SignKey = Annotated[
    str | None, INCIDENTAL, _FILE, "Ed25519 private key (PEM): sign the artifact with it once everything is in it."
]
Lora = Annotated[bool, Flag("--lora/--full"), "Train a low-rank adapter; its merged weights are written too."]
Bf16 = Annotated[bool, Flag("--bf16/--no-bf16"), "Mixed precision."]
Checkpointing = Annotated[bool, Flag("--gradient-checkpointing/--no-gradient-checkpointing"), "Less memory, more time."]


@dataclass(frozen=True)
class UnlearnSettings:
    """`d2unlearn unlearn`: what to remove from which model, and how."""

    model: Annotated[str, MODEL, INCIDENTAL, "Model folder, GGUF file or hub name."]
    forget: Annotated[
        RowFiles, INCIDENTAL, "What to remove: JSONL, JSON, CSV, TSV, XLSX, Parquet, a saved data set, or hf:NAME."
    ]
    retain: Annotated[RowFiles, INCIDENTAL, "What to keep; some rows are set aside: a tenth, at least 400, at most half."]
    output: Annotated[str, INCIDENTAL, "Folder for the artifact."]
    near: Annotated[
        str | None,
        INCIDENTAL,
        _FILE,
        Default("the set-aside rows nearest by the model's own hidden states"),
        "Neighbours of what is removed, never trained on: what of them stays decides which epoch is kept.",
    ] = None
    alternate: Annotated[
        str | None, INCIDENTAL, "Other answers, where a method trains them: refusals as .txt, or rows of the same questions."
    ] = None
    method: Annotated[str, "Unlearning method (docs/methods.md)."] = "eua"
    method_parameters: Annotated[
        dict[str, Any], Flag("--set"), Metavar("KEY=VALUE"), "A parameter of the method; in a file `method_parameters`."
    ] = field(default_factory=dict)
    learning_rate: Annotated[float | str, ABOVE_ZERO.or_auto, "A number, or auto: from the model's size."] = "auto"
    epochs: Epochs = "auto"
    batch_size: Annotated[int, COUNT, "Forget rows a step and device, with as many retained."] = 8
    accumulation: Accumulation = "auto"
    max_length: MaxLength = 512
    long: Annotated[
        str | None,
        one_of("split", "cut", "refuse"),
        INCIDENTAL,
        Default("text split; of other rows those to forget refused, those to keep cut"),
        "Longer rows: split into overlapping windows (text alone), cut, or refuse.",
    ] = None
    seed: Seed = 0
    lora: Lora = False
    lora_rank: Annotated[int, RANK, "Rank of the adapter."] = 16
    quantization: Annotated[
        str | None,
        LATER,
        one_of("4bit", "8bit"),
        "With --lora: hold the base in 4 bits (NF4) or 8, by bitsandbytes. The artifact is then the adapter alone.",
    ] = None
    merge: Annotated[
        bool, LATER, "With --quantization: write plain weights instead, dequantised, with the adapter in them."
    ] = False
    dtype: Dtype = "auto"
    bf16: Bf16 = False
    gradient_checkpointing: Checkpointing = False
    fsdp: Annotated[
        bool,
        LATER,
        Flag("--fsdp"),
        "Spread the model over the processes that torchrun started (FSDP2); none holds all of it.",
    ] = False
    exclude_padded_rows: Annotated[
        bool, Flag("--exclude-padded-rows/--all-rows"), "Leave vocabulary rows the tokenizer lacks out of energies."
    ] = False
    keep: Annotated[
        str,
        one_of("best", "last"),
        "best: the epoch that erased and kept most, by rows set aside and near ones; last: as training ends.",
    ] = "best"
    report_to: Annotated[str, INCIDENTAL, "wandb, tensorboard, ..., as in transformers."] = "none"
    plan: Annotated[bool, INCIDENTAL, PLANNED, "Say what the run will need, time a few steps of it, and do no more."] = False
    devices: Annotated[int | None, INCIDENTAL, PLANNED, COUNT, "With --plan: as if on so many devices."] = None
    memory: Annotated[str | None, INCIDENTAL, PLANNED, Metavar("80GB"), "With --plan: what each of them has."] = None
    recipe: Annotated[
        str,
        LATER,
        one_of("size", "measured"),
        TARGETS,
        "size: learning rate and epochs by the sizes of model and data; measured: found on them, for the targets below.",
    ] = "size"
    forget_below: Annotated[
        float | None,
        LATER,
        PROPER_SHARE,
        TARGETS,
        Default("as --retain-model has it, else that of swapped answers"),
        "What the mean probability of forgotten answers has to come below, in other words too. Makes the recipe measured.",
    ] = None
    keep_at_least: Annotated[
        float,
        LATER,
        PROPER_SHARE,
        TARGETS,
        "Share of the tokens that the original has right that must stay, retained and near.",
    ] = 0.99
    retain_model: Annotated[
        str | None, MODEL, INCIDENTAL, TARGETS, "A model that never knew the forget rows, of the same tokenizer."
    ] = None
    strict: Annotated[bool, INCIDENTAL, TARGETS, Flag("--strict"), "Exit with code 3 where a target is missed."] = False
    group_size: GroupSize = None
    columns: Columns = field(default_factory=dict)
    sign_key: SignKey = None
    force: Force = False


@dataclass(frozen=True)
class CalibrateSettings:
    """`d2unlearn calibrate`: the gate of an artifact, from retained prompts that training never saw."""

    model: Annotated[str, MODEL, INCIDENTAL, "The artifact that `unlearn` wrote, or any model folder."]
    retain: Annotated[RowFiles, INCIDENTAL, "Legitimate requests; of an artifact's own file the rows set aside are used."]
    forget: Annotated[
        RowFiles | None, INCIDENTAL, "Requests that should be refused: places the threshold better, reports misses."
    ] = None
    near: Annotated[RowFiles | None, INCIDENTAL, "Legitimate requests beside what is forgotten: a group of their own."] = None
    unrelated: Annotated[RowFiles | None, INCIDENTAL, "Legitimate requests of nothing related: a group of their own."] = None
    traffic: Annotated[
        str | None,
        INCIDENTAL,
        _JSONL,
        "Real prompts, without answers: those that look forgotten are listed for you to decide on.",
    ] = None
    wordings: Annotated[
        int, ZERO_OR_MORE, "Other wordings that each row is asked in, of every group of requests; 0: as the rows stand alone."
    ] = 1
    replace: Annotated[
        bool, INCIDENTAL, Flag("--replace"), "Also where the gate that is there was made with more forget rows."
    ] = False
    max_false_refusal: Annotated[float, PROPER_SHARE, "The largest share of legitimate requests that may be refused."] = 0.01
    confidence: Annotated[
        float | None, PROPER_SHARE, "Hold the share with this confidence, e.g. 0.9, over calibrations, not on average."
    ] = None
    max_new_tokens: Annotated[int, COUNT, "Tokens of each answer that the gate watches."] = 64
    batch_size: Annotated[int, COUNT, INCIDENTAL, "Prompts at once."] = 32
    refusal: Annotated[list[str], Default("a set of natural ones"), "What a refusal says."] = field(default_factory=list)
    score: Annotated[str, "The request's score; auto measures which is best."] = "auto"
    seed: Annotated[int | None, SEED, Default("the one `unlearn` had, else 0"), "Seed of everything that is drawn."] = None
    group_size: GroupSize = None
    columns: Columns = field(default_factory=dict)
    unseen: Annotated[
        bool, INCIDENTAL, Flag("--unseen"), "You vouch that no row of --retain was trained on; the gate says that you do."
    ] = False
    sign_key: SignKey = None
    system: SystemMessage = None
    update: Annotated[
        bool,
        INCIDENTAL,
        Flag("--update"),
        "Add these rows to the gate that is there: same score, a threshold that still holds.",
    ] = False


@dataclass(frozen=True)
class GenerateSettings:
    """`d2unlearn generate` and `chat`: answers of a guarded model."""

    model: Annotated[str, MODEL, INCIDENTAL, "An artifact with a calibrated gate."]
    prompt: Annotated[str | None, INCIDENTAL, "One request; its answer goes to the standard output."] = None
    input: Annotated[str | None, INCIDENTAL, _JSONL, "Rows with a `prompt` to answer; other fields are kept."] = None
    output: Annotated[str | None, INCIDENTAL, _JSONL, "Adds text, refused, energy, score and threshold to each row."] = None
    max_new_tokens: AnswerLength = None
    refusals: RefusalsFile = None
    raw: Annotated[bool, "Answer without the gate."] = False
    show_energy: Annotated[bool, INCIDENTAL, "Print energy, threshold and decision too."] = False
    sample: Annotated[bool, Flag("--sample/--greedy"), "Draw tokens instead of taking the most likely."] = False
    temperature: Annotated[float, ABOVE_ZERO, "With --sample."] = 1.0
    top_p: Annotated[float, Limit("above 0 and at most 1", lambda value: 0 < value <= 1), "With --sample."] = 1.0
    batch_size: Annotated[int, COUNT, INCIDENTAL, "Prompts at once."] = 16
    seed: Seed = 0
    dtype: Dtype = "auto"
    force: Force = False


@dataclass(frozen=True)
class ServeSettings:
    """`d2unlearn serve`: the guarded model behind OpenAI's HTTP interface, and what a client may ask of it."""

    model: Annotated[str, MODEL, "An artifact with a calibrated gate."]
    host: Annotated[str, "Address to listen on; 127.0.0.1 is this machine alone."] = "127.0.0.1"
    port: Annotated[int, PORT, "Port to listen on; 0: any that is free."] = 8000
    name: Annotated[str | None, ITS_FOLDER, "What the model is called."] = None
    refusals: RefusalsFile = None
    system: Annotated[SystemMessage, Default("what the gate was calibrated under")] = None
    strict_system: Annotated[bool, Flag("--strict-system"), "Turn requests with another system message down, 400."] = False
    raw: Annotated[bool, "Serve without the gate; every answer says so."] = False
    dtype: Dtype = "auto"
    max_new_tokens: AnswerLength = None
    max_prompt_tokens: Annotated[int | None, COUNT, Default("what the context leaves, at most 4096"), "Longest prompt."] = None
    max_prompt_characters: Annotated[
        int | None, COUNT, Default("32 for each token of the longest prompt"), "Longest prompt that is tokenised at all."
    ] = None
    max_body_bytes: Annotated[int, COUNT, "Largest request."] = 1_000_000
    batch_size: Annotated[int, COUNT, "Requests answered together."] = 16
    queue: Annotated[int, COUNT, "Requests that may wait; beyond, 503."] = 256
    connections: Annotated[int, COUNT, "Connections open at once; beyond, 503."] = 2048
    timeout: Annotated[float, ABOVE_ZERO, "Seconds until a request is given up, 504."] = 120.0
    stop_timeout: Annotated[float, ABOVE_ZERO, "Seconds that running requests have to finish at a stop."] = 20.0
    hold_back: Annotated[int, ZERO_OR_MORE, "Tokens that a stream stays behind, so that late refusals leak less."] = 0
    api_keys: Annotated[str | None, _FILE, "One key a line; a request has to bring one of them."] = None
    metrics_keys: Annotated[str | None, _FILE, Default("as for requests"), "Keys of /metrics alone, one a line."] = None
    hide_energy: Annotated[bool, "Show no energies to clients, who could search by them."] = False
    log_prompts: Annotated[bool, Default("never"), "Log what is asked."] = False
    trust_key: Annotated[str | None, _FILE, "Ed25519 public key (PEM): serve only what was signed with its private key."] = None


@dataclass(frozen=True)
class PlaySettings:
    """`d2unlearn play`: a page that shows the original's, the unlearned and the guarded answer side by side."""

    model: Annotated[str, MODEL, "An artifact with a calibrated gate."]
    original: Annotated[str | None, MODEL, Default("what the artifact was made from"), "The model before unlearning."] = None
    port: Annotated[int, PORT, "Port on this machine; 0: any that is free."] = 7860
    samples: Annotated[dict[str, str], _NAMED_FILE, Default("the artifact's own rows"), "Questions to choose from."] = field(
        default_factory=dict
    )
    max_new_tokens: Annotated[AnswerLength, Default("what the gate was calibrated for")] = None
    dtype: Dtype = "auto"


@dataclass(frozen=True)
class EvaluateSettings:
    """`d2unlearn evaluate`: knowledge, energy and refusals of a model on forget and retained rows."""

    model: Annotated[str, MODEL, INCIDENTAL, "Model folder; with a gate in it, guarded metrics are measured too."]
    forget: Annotated[RowFiles, INCIDENTAL, "Rows that should be gone."]
    retain: Annotated[RowFiles, INCIDENTAL, "Rows that should have stayed: best ones that training never saw."]
    output: Annotated[str, INCIDENTAL, "Folder for evaluation.json."]
    also_forget: AlsoForget = field(default_factory=dict)
    also_retain: AlsoRetain = field(default_factory=dict)
    original: Annotated[
        str | None, INCIDENTAL, "The model before unlearning: KL from it at every answer; takes the memory of both."
    ] = None
    label: Annotated[str | None, ITS_FOLDER, "The model's name in tables."] = None
    max_new_tokens: Annotated[int, COUNT, "Longest answer."] = 128
    batch_size: Annotated[int, COUNT, "Rows at once."] = 32
    limit: RowLimit = None
    seed: Seed = 0
    dtype: Dtype = "auto"
    group_size: GroupSize = None
    columns: Columns = field(default_factory=dict)
    redact: Annotated[bool, INCIDENTAL, "Keep no texts: no question, answer, reply or id in the file."] = False
    force: Force = False


@dataclass(frozen=True)
class BenchmarkSettings:
    """`d2unlearn evaluate --benchmark`: one of the field's benchmarks, counted as the convention says."""

    model: Annotated[str, MODEL, INCIDENTAL, "Model folder, GGUF file or hub name."]
    benchmark: Annotated[str, one_of(*BENCHMARKS), BENCHMARK, f"One of {', '.join(BENCHMARKS)}, instead of rows."]
    output: Annotated[str, INCIDENTAL, "Folder for evaluation.json."]
    data: Annotated[str | None, INCIDENTAL, BENCHMARK, _FOLDER, Default("from the hub"), "Its files."] = None
    convention: Annotated[
        str, one_of("d2unlearn", "open-unlearning"), BENCHMARK, "How to count: d2unlearn or open-unlearning."
    ] = "d2unlearn"
    retain_logs: Annotated[
        str | None,
        INCIDENTAL,
        BENCHMARK,
        _FILE,
        "TOFU_EVAL.json (MUSE_EVAL.json) of a model that never saw the forget set, ours or open-unlearning's.",
    ] = None
    forget_split: Annotated[str, BENCHMARK, "TOFU: forget01, 05 or 10."] = "forget10"
    holdout_split: Annotated[str | None, BENCHMARK, Default("holdout of that size"), "TOFU: rows nobody trained on."] = None
    corpus: Annotated[str, one_of("news", "books"), BENCHMARK, "MUSE: news or books."] = "news"
    parts: Annotated[list[str], BENCHMARK, Flag("--part"), "MUSE: scal or sust, too."] = field(default_factory=list)
    tasks: Annotated[list[str], BENCHMARK, Flag("--task"), Default("the three of WMDP"), "WMDP: any task of lm-eval."] = field(
        default_factory=list
    )
    question_key: Annotated[
        str, one_of("question", "paraphrased_question"), BENCHMARK, "TOFU: question or paraphrased_question."
    ] = "question"
    gradient_norm: Annotated[
        bool,
        BENCHMARK,
        Flag("--gradient-norm/--no-gradient-norm"),
        Default("on"),
        "The attack that needs gradients, a third of the time.",
    ] = True
    reference_model: Annotated[
        str | None, MODEL, INCIDENTAL, BENCHMARK, "Model of the same tokenizer for the reference attack."
    ] = None
    mmlu: Annotated[float | None, SHARE, BENCHMARK, "LUME: the model's accuracy on MMLU, measured elsewhere."] = None
    system_prompt: Annotated[str | None, BENCHMARK, "Begins every conversation."] = None
    date_string: Annotated[str | None, BENCHMARK, "The date for chat templates that write one."] = None
    label: Annotated[str | None, ITS_FOLDER, "The model's name in tables."] = None
    batch_size: Annotated[int, COUNT, "Rows at once."] = 32
    limit: RowLimit = None
    seed: Seed = 0
    dtype: Dtype = "auto"
    force: Force = False


@dataclass(frozen=True)
class AnalyzeSettings:
    """`d2unlearn analyze`: how well energy and every other detector tell forgotten from retained requests, and at what cost."""

    model: Annotated[str, MODEL, INCIDENTAL, "Model folder; with a gate in it, the others are compared with its score."]
    forget: Annotated[RowFiles, INCIDENTAL, "Requests that should be gone."]
    retain: Annotated[RowFiles, INCIDENTAL, "Requests that should have stayed: best ones that training never saw."]
    output: Annotated[str, INCIDENTAL, "Folder for analysis.json and the page, analysis.html."]
    also_forget: AlsoForget = field(default_factory=dict)
    also_retain: AlsoRetain = field(default_factory=dict)
    original: Annotated[str | None, MODEL, INCIDENTAL, "The model before unlearning, read beside it."] = None
    oracle: Annotated[str | None, MODEL, INCIDENTAL, "A model that never saw the forget rows, read beside it."] = None
    calibration: Annotated[
        str | None,
        INCIDENTAL,
        Default("half of --retain"),
        "Retained requests to fit and to set thresholds on; of an artifact's own file the rows set aside are used.",
    ] = None
    label: Annotated[str | None, ITS_FOLDER, "The model's name on the page."] = None
    max_new_tokens: Annotated[int, COUNT, "Longest answer."] = 64
    batch_size: Annotated[int, COUNT, "Requests at once."] = 32
    disturbed: Annotated[
        int, COUNT, "Rows of the first forget and the first retained set to ask again under each perturbation."
    ] = 200
    limit: RowLimit = None
    seed: Seed = 0
    dtype: Dtype = "auto"
    group_size: GroupSize = None
    columns: Columns = field(default_factory=dict)
    force: Force = False


@dataclass(frozen=True)
class AuditSettings:
    """`d2unlearn audit`: every attack on an artifact, beside its original and the model that never knew."""

    model: Annotated[str, MODEL, INCIDENTAL, "The artifact; with a gate in it, answers behind the gate are attacked too."]
    original: Annotated[str, MODEL, INCIDENTAL, "The model before unlearning."]
    forget: Annotated[RowFiles, INCIDENTAL, "Rows that should be gone."]
    retain: Annotated[RowFiles, INCIDENTAL, "Rows that should have stayed: best ones that training never saw."]
    output: Annotated[str, INCIDENTAL, "Folder for audit.json, the attacks' readings and the page, audit.html."]
    oracle: Annotated[
        str | None, MODEL, INCIDENTAL, "A model that never knew the forget rows: what an attack teaches shows on it."
    ] = None
    never_seen: Annotated[
        str | None, INCIDENTAL, _FILE, "Without an oracle: facts of the same kind that the model never saw stand in."
    ] = None
    near: Annotated[str | None, INCIDENTAL, _FILE, "Legitimate requests near the forgotten ones."] = None
    paraphrased: Annotated[str | None, INCIDENTAL, _FILE, "Forget rows in other words of your own."] = None
    guard: Annotated[
        str | None, INCIDENTAL, Metavar("NAME"), "In a gate's place a guard of untouched weights: input_classifier."
    ] = None
    guard_retain: Annotated[
        RowFiles | None, INCIDENTAL, "Retained rows, none of --retain's, that the guard is fitted on and its threshold set by."
    ] = None
    guard_parameters: Annotated[
        dict[str, Any],
        INCIDENTAL,
        Flag("--set"),
        Metavar("KEY=VALUE"),
        "A parameter of the guard; `guard_parameters` in a file.",
    ] = field(default_factory=dict)
    max_false_refusal: Annotated[
        float, INCIDENTAL, PROPER_SHARE, "Share that --guard may refuse wrongly; a gate promises its own."
    ] = 0.01
    quick: Annotated[bool, "A few settings of each attack, on few rows (the default)."] = False
    thorough: Annotated[bool, "More settings, and the rows that claims need: hours for a small model on a CPU."] = False
    exhaustive: Annotated[bool, "Every setting, all rows, several seeds."] = False
    attack: Annotated[list[str], Flag("--attack"), Metavar("NAME"), Default("all"), "Make this attack only."] = field(
        default_factory=list
    )
    probability_margin: Annotated[
        float, PROPER_SHARE, "Answer probability above the never-knew model's that is still called gone."
    ] = 0.02
    told_margin: Annotated[float, PROPER_SHARE, "Share of rows told (or let through), likewise."] = 0.01
    refused_margin: Annotated[float, PROPER_SHARE, "Share of false refusals above what the gate promises, likewise."] = 0.01
    picked_margin: Annotated[float, PROPER_SHARE, "Share of answers that a probe picks rightly, likewise."] = 0.05
    redact: Annotated[bool, "Keep no texts: no question, answer or reply in any file."] = False
    label: Annotated[str | None, ITS_FOLDER, "The model's name on the page."] = None
    batch_size: Annotated[int, COUNT, INCIDENTAL, "Rows at once."] = 32
    seed: Seed = 0
    dtype: Dtype = "auto"
    group_size: GroupSize = None
    columns: Columns = field(default_factory=dict)
    force: Force = False

    def __post_init__(self) -> None:
        if self.quick + self.thorough + self.exhaustive > 1:
            raise ConfigError(["choose one of --quick, --thorough and --exhaustive"])
        if self.guard is not None and self.guard_retain is None:
            raise ConfigError([f"--guard {self.guard} needs --guard-retain: retained rows to fit it on, none of --retain's"])
        if self.guard is None and (self.guard_retain is not None or self.guard_parameters):
            raise ConfigError(["--guard-retain and --set are of a guard: name one with --guard"])


@dataclass(frozen=True)
class CompareSettings:
    """`d2unlearn compare`: methods and guards, tuned alike on validation questions and evaluated once on test questions.

    splits: what `comparison.plan.Split` holds, by name; search: a parameter as a value or as a range to search, [low, high], by
    method or guard.
    """

    model: Annotated[str, MODEL, "Model to unlearn, where a split names no other."]
    splits: Annotated[
        dict[str, dict[str, Any]],
        Flag("--splits --split"),
        Metavar("NAME={forget: FILE, retain: FILE, ...}"),
        "What is forgotten and kept.",
    ]
    output: Annotated[str, "Folder for work, tables and pages."]
    results: Annotated[str | None, _FOLDER, Default("results in the output"), "One JSON file a run, kept."] = None
    methods: Annotated[list[str], Flag("--methods --method"), Default("all of them"), "A method to compare."] = field(
        default_factory=list
    )
    guards: Annotated[list[str], Flag("--guards --guard"), "A guard of untouched weights to compare."] = field(
        default_factory=list
    )
    left_out: Annotated[dict[str, str], Metavar("NAME=WHY"), "Named in the table without numbers."] = field(
        default_factory=dict
    )
    seeds: Annotated[list[int], Flag("--seeds --seed"), "Seeds to evaluate with; the first tunes."] = field(
        default_factory=lambda: [0, 1, 2]
    )
    trials: Annotated[int, COUNT, "Choices of parameters tried for each method and guard."] = 6
    search: Annotated[
        dict[str, dict[str, Any]],
        Metavar("NAME={beta: [0.1, 1], gamma: 2}"),
        "Other ranges, or fixed values, of a method or guard.",
    ] = field(default_factory=dict)
    learning_rate: Annotated[float | str, ABOVE_ZERO.or_auto, TRAINING, "The rate that the search's factors are of."] = "auto"
    epochs: Annotated[Epochs, TRAINING] = 5.0
    batch_size: Annotated[int, COUNT, TRAINING, "Forget rows a step and device."] = 8
    accumulation: Annotated[Accumulation, TRAINING] = "auto"
    max_length: Annotated[MaxLength, TRAINING] = 512
    lora: Annotated[Lora, TRAINING, "Train low-rank adapters."] = False
    lora_rank: Annotated[int, RANK, TRAINING, "Their rank."] = 16
    dtype: Dtype = "auto"
    bf16: Annotated[Bf16, TRAINING] = False
    gradient_checkpointing: Annotated[Checkpointing, TRAINING] = False
    max_false_refusal: Annotated[float, PROPER_SHARE, "Share that gates and guards may refuse wrongly."] = 0.01
    test_rows: Annotated[int, COUNT, "Retained rows that only test, at most a quarter."] = 400
    max_new_tokens: Annotated[int, COUNT, "Longest answer."] = 96
    eval_batch_size: Annotated[int, COUNT, "Rows at once when nothing is trained."] = 32
    attack_learning_rate: Annotated[
        float, ABOVE_ZERO, "Of relearning, for millions of parameters; a fiftieth, a fifth and twice of it are tried too."
    ] = 5e-4
    wording_rows: Annotated[int, COUNT, "Forgotten test questions asked in other words, in every wording that judges."] = 40
    keep_artifacts: Annotated[bool, "Keep the trained models too."] = False
    backend: Annotated[
        str,
        one_of("process", "ray", "here"),
        WHERE,
        "process: a command a run; here: in this process; ray: tasks of a cluster.",
    ] = "process"
    jobs: Annotated[int, COUNT, WHERE, "Runs at once."] = 1
    cpus: Annotated[float, ABOVE_ZERO, WHERE, "Of a Ray cluster, for each run."] = 1.0
    gpus: Annotated[float, ZERO_OR_MORE, WHERE, "Likewise."] = 0.0
    launcher: Annotated[str | None, WHERE, Metavar("COMMAND"), "Starts a run in place of python: `accelerate launch ...`."] = (
        None
    )
    run: Annotated[str | None, WHERE, Flag("--run --key"), Metavar("KEY"), "Do this run alone, as any scheduler can."] = None
    plan: Annotated[bool, WHERE, "List all runs and how they stand; do nothing."] = False
    force: Force = False


@dataclass(frozen=True)
class QuickstartSettings:
    """`d2unlearn quickstart`: the whole way on the embedded world of made-up people, or on a topic of a pretrained model."""

    output: Annotated[
        str | None, Default("runs/quickstart, or runs/quickstart-real"), "Folder for data, models and the report."
    ] = None
    size: Annotated[str, "default, or smoke: the made-up world in a fraction of the time."] = "default"
    real: Annotated[bool, Flag("--real"), "Unlearn a topic of SmolLM2-135M-Instruct's own knowledge instead."] = False
    topic: Annotated[str, "With --real: which."] = "France"
    seed: Seed = 0
    force: Force = False


@dataclass(frozen=True)
class ReportSettings:
    """`d2unlearn report`: a page from two evaluations."""

    before: Annotated[str, "evaluation.json (or its folder) of the original model."]
    after: Annotated[str, "evaluation.json (or its folder) of the unlearned model."]
    artifact: Annotated[str | None, "The artifact: its gate and manifest are shown."] = None
    audit: Annotated[str | None, "audit.json (or its folder) of the artifact: what may be claimed is shown and linked."] = None
    output: Annotated[str, "Where the page goes."] = "report.html"
    redact: Annotated[bool, "Show no texts: no question, answer or reply."] = False
    force: Force = False


@dataclass(frozen=True)
class CheckSettings:
    """`d2unlearn data check`: what the rows of a data set look like."""

    forget: Annotated[RowFiles | None, "Rows to forget."] = None
    retain: Annotated[RowFiles | None, "Rows to keep; overlap with the forget rows is listed."] = None
    data: Annotated[str | None, _FOLDER, "What `data make` wrote, or part of it: each of its files is a set."] = None
    also_forget: AlsoForget = field(default_factory=dict)
    also_retain: AlsoRetain = field(default_factory=dict)
    model: Annotated[str | None, MODEL, "Model folder whose tokenizer and chat template render the example."] = None
    max_length: MaxLength = 512
    group_size: GroupSize = None
    columns: Columns = field(default_factory=dict)


@dataclass(frozen=True)
class MakeSettings:
    """`d2unlearn data make`: the files that the other commands need, made of what a model knows about a topic."""

    model: Annotated[str, MODEL, INCIDENTAL, "Model folder, GGUF file or hub name: it is asked itself."]
    topic: Annotated[str, "What should be forgotten, by its name: a country, a person, a subject, ..."]
    output: Annotated[str, INCIDENTAL, "Folder for the files."]
    seeds: Annotated[str | None, _FILE, "Questions of your own about the topic: a line each, or JSONL rows."] = None
    max_new_tokens: Annotated[int, COUNT, "Longest answer."] = 24
    batch_size: Annotated[int, COUNT, INCIDENTAL, "Questions at once."] = 32
    seed: Seed = 0
    dtype: Dtype = "auto"
    force: Force = False


def load_settings(kind: type[Settings], file: str | Path | None, overrides: Mapping[str, Any]) -> Settings:
    """Settings from a YAML file with the command line's values over it (None: not given).

    A mapping given on the command line (`--set`, `--also-forget`) replaces the file's entries of the same name and keeps the
    others. Raises `ConfigError` with every mistake: unknown keys, wrong types, values out of range, what is missing, a file
    that is no YAML mapping.
    """
    values = read_yaml(file)
    for key, value in overrides.items():
        if value is not None:
            below = values.get(key)
            values[key] = {**below, **value} if isinstance(value, dict) and isinstance(below, dict) else value
    hints = get_type_hints(kind, include_extras=True)
    given, mistakes = typed(values, hints)
    for setting in fields(kind):  # type: ignore[arg-type]
        required = setting.default is MISSING and setting.default_factory is MISSING
        if required and setting.name not in values:
            flag = flag_of(setting.name, hints[setting.name]).split()[0]
            mistakes.append(f"{setting.name} is missing ({flag}, or `{setting.name}:` in the file)")
    if mistakes:
        raise ConfigError(mistakes)
    return kind(**given)


def identity(settings: Any) -> dict[str, Any]:
    """What a result depends on: the settings without the `INCIDENTAL` fields, and without `LATER` ones at their defaults."""
    hints, defaults = (
        get_type_hints(type(settings), include_extras=True),
        {each.name: each.default for each in fields(settings)},
    )

    def counts(name: str, value: Any) -> bool:
        hint = hints[name]
        return marker_of(hint, Incidental) is None and (marker_of(hint, Later) is None or value != defaults[name])

    return {name: value for name, value in asdict(settings).items() if counts(name, value)}


def system_message(given: str | None) -> str | None:
    """The text, or that of the file behind `@`. Raises `ConfigError` for a file that cannot be read, and for one of nothing."""
    if given is None:
        return None
    text = given
    if given.startswith("@"):
        try:
            text = Path(given[1:]).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"--system {given} cannot be read: {getattr(error, 'strerror', None) or 'no text'}"]) from None
    if not text.strip():
        raise ConfigError(["--system is empty: leave it out where there is no system message"])
    return text


def read_yaml(file: str | Path | None) -> dict[str, Any]:
    """What a settings file says, by key; nothing for no file. Raises `ConfigError` as `load_settings` does."""
    if file is None:
        return {}
    path = Path(file)
    try:
        values = read_values(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{path} does not exist"]) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError([f"{path} cannot be read: {reason}"]) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"{path} is not valid YAML: {' '.join(str(error).split())}"]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError([f"{path} should hold `key: value` lines, not a {type(values).__name__}"])
    named = {str(key).replace("-", "_"): value for key, value in values.items()}
    if len(named) < len(values):
        keys = [str(key).replace("-", "_") for key in values]
        raise ConfigError([f"{path}: {key} is given twice" for key in named if keys.count(key) > 1])
    return named
