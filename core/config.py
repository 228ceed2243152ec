"""Every setting there is, once: its type, default, range and the sentence that explains it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from core.problem import Problem


def knob(
    default: Any, title: str, help: str, *, group: str = "", unit: str = "", step: float | None = None, **limits: Any
) -> Any:
    """A setting: pydantic's Field plus what a form needs to draw it.

    Args:
        default: the value when nobody says anything (``...`` makes it required).
        title: its name for people.
        help: one sentence of what it does.
        group: where the form puts it: "" (always in sight), method, optimisation, data, saving.
        unit: what it counts, for people.
        step: a sensible step of a slider or number field.
        limits: pydantic's ge, gt, le, lt, min_length, max_length.
    """
    extra = {"group": group, "unit": unit, "step": step}
    return Field(default, title=title, description=help, json_schema_extra=extra, **limits)


class Settings(BaseModel):
    """A group of settings: immutable, strict about names, lenient about how a number is spelled."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """``true`` is no number, although Python says so; pydantic would read it as 1."""
        if isinstance(value, bool) and not _takes_truth(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("true and false are no value for it")
        return value

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """The settings that `data` describes.

        Raises:
            Problem: with every mistake at once, each with the dotted key of its field.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise Problem.join(_explain(cls, detail) for detail in error.errors()) from None


def _takes_truth(annotation: Any) -> bool:
    return annotation is bool or any(_takes_truth(inner) for inner in get_args(annotation))


class ModelSettings(Settings):
    """Which base model, and in what precision."""

    name: str = knob(
        "playground",
        "Base model",
        "The built-in playground, a local folder, or an id on the Hugging Face hub.",
        min_length=1,
        max_length=500,
    )
    revision: str | None = knob(
        None, "Revision", "Branch, tag or commit of a hub model; empty takes the newest.", group="data", max_length=200
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob(
        "auto",
        "Precision",
        "Number format of the base weights; auto takes bfloat16 where the device is fast at it, else float32.",
        group="optimisation",
    )
    quantization: Literal["none", "nf4", "int8"] = knob(
        "none",
        "Quantisation",
        "Compresses the frozen base weights: nf4 (QLoRA) to about a quarter of 16 bits, int8 to half with less loss; none keeps them as they are.",
        group="optimisation",
    )


class DataSettings(Settings):
    """Which rows, how they are read, and what of them is trained on."""

    train: str = knob(
        "sample:style",
        "Data set",
        "A file or a folder, a built-in sample, or an id on the Hugging Face hub; several with ; between them.",
        min_length=1,
        max_length=10_000,
    )
    eval: str | None = knob(
        None,
        "Evaluation data",
        "A separate file to measure on; empty takes the files of a folder that are named for it, else sets rows aside.",
        group="data",
        max_length=10_000,
    )
    eval_fraction: float = knob(
        0.05,
        "Set aside",
        "Share of the rows that is never trained on and measures progress.",
        group="data",
        ge=0.0,
        le=0.5,
        step=0.01,
    )
    eval_rows: int | None = knob(
        None,
        "Set aside, in rows",
        "How many rows are never trained on and measure progress; empty takes the share above.",
        group="data",
        unit="rows",
        ge=0,
        le=10_000_000,
    )
    format: str = knob("auto", "Format", "The shape of a row; auto recognises it.", group="data", max_length=50)
    columns: dict[str, str] = knob(
        {},
        "Columns",
        "Which column plays which part, when the names are your own; or a text with columns in braces, such as {title}: {body}.",
        group="data",
        max_length=20,
    )
    max_length: int = knob(
        1024,
        "Longest row",
        "What becomes of longer rows is the next setting.",
        group="data",
        unit="tokens",
        ge=8,
        le=1_048_576,
        step=64,
    )
    too_long: Literal["cut", "oldest", "split", "drop"] = knob(
        "cut",
        "Rows that are too long",
        "Their end is cut, their oldest turns are left out, they are split between turns into several, or they are dropped. Plain text always goes on in the next row.",
        group="data",
    )
    leave_out: list[Literal["duplicate", "near_duplicate", "overlap", "near_overlap", "conflict", "mojibake"]] = knob(
        [],
        "Rows to leave out",
        "Rows that an inspection finds are neither trained on nor measured on: duplicate, near_duplicate, overlap, near_overlap, conflict or mojibake, one a line.",
        group="data",
        max_length=10,
    )
    stride: int = knob(
        128,
        "Overlap",
        "Tokens that neighbouring windows of a long text share, for questions about a text; at most half a window.",
        group="data",
        unit="tokens",
        ge=0,
        le=1_048_576,
        step=16,
    )
    packing: bool = knob(
        True,
        "Packing",
        "Join short rows into one sequence instead of padding them; the rows never see each other.",
        group="data",
    )
    template: Literal["model", "plain"] = knob(
        "model",
        "Chat template",
        "How conversations are written: as the model's own template does where it has one, or plainly, with headings that know every role and keep system prompts. Chat and exports follow it.",
        group="data",
    )
    train_on: Literal["answers", "last_answer", "everything"] = knob(
        "answers", "Train on", "Which tokens are learned: every answer, the last answer, or everything.", group="data"
    )


class TrainSettings(Settings):
    """How it is trained and what is kept."""

    epochs: float = knob(3.0, "Epochs", "How many times every row is seen.", gt=0, le=1000, step=0.5)
    max_steps: int | None = knob(
        None,
        "Most steps",
        "Ends the training after this many steps; empty leaves it to the epochs.",
        group="optimisation",
        ge=1,
        le=10_000_000,
    )
    batch_size: int | Literal["auto"] = knob(
        "auto",
        "Batch size",
        "Rows that pass through the model at once; auto chooses by device and model.",
        group="optimisation",
        unit="rows",
    )
    gradient_accumulation: int = knob(
        1,
        "Accumulation",
        "Batches gathered before the weights change: a larger batch without more memory.",
        group="optimisation",
        ge=1,
        le=4096,
    )
    learning_rate: float = knob(
        2e-4,
        "Learning rate",
        "The size of a step: too high and it forgets, too low and it does not learn.",
        gt=0,
        le=1.0,
    )
    head_learning_rate: float | None = knob(
        None,
        "Learning rate of the head",
        "For the head of a classifier or span finder, which begins at random; up to ten times this where what it reads is small. Empty takes the learning rate above.",
        group="optimisation",
        gt=0,
        le=1.0,
    )
    scheduler: Literal["cosine", "linear", "constant"] = knob(
        "cosine", "Schedule", "How the learning rate falls after the warm-up.", group="optimisation"
    )
    warmup: float = knob(
        0.03,
        "Warm-up",
        "Share of the steps in which the learning rate rises from zero.",
        group="optimisation",
        ge=0.0,
        lt=1.0,
        step=0.01,
    )
    weight_decay: float = knob(
        0.0, "Weight decay", "Pulls the trained weights towards zero.", group="optimisation", ge=0.0, le=1.0, step=0.01
    )
    max_grad_norm: float = knob(
        1.0,
        "Gradient clipping",
        "Longest gradient that is let through; 0 lets everything through.",
        group="optimisation",
        ge=0.0,
        le=1000.0,
        step=0.1,
    )
    seed: int = knob(0, "Seed", "The same seed gives the same run.", group="optimisation", ge=0, le=2**31 - 1)
    eval_every: int = knob(
        50,
        "Evaluate every",
        "Steps between two measurements on the rows set aside; 0 measures at the end only.",
        group="saving",
        unit="steps",
        ge=0,
        le=1_000_000,
    )
    save_every: int = knob(
        50,
        "Save every",
        "Steps between two checkpoints; 0 saves at the end only.",
        group="saving",
        unit="steps",
        ge=0,
        le=1_000_000,
    )
    keep: int = knob(
        2, "Checkpoints kept", "How many of the newest checkpoints stay on disk.", group="saving", ge=1, le=1000
    )
    early_stopping: int | None = knob(
        None,
        "Early stopping",
        "Ends after this many evaluations without a better one and keeps the best; empty never does.",
        group="saving",
        unit="evaluations",
        ge=1,
        le=1000,
    )

    early_stopping_metric: Literal["loss", "accuracy", "macro_f1", "exact_match", "f1", "rouge_l", "bleu"] = knob(
        "loss",
        "Measured by",
        "What early stopping goes by: the evaluation loss, or one of what the task measures.",
        group="saving",
    )

    tracker: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] = knob(
        "none",
        "Numbers also to",
        "Sends the numbers of every step to that library as well, which has to be installed; TensorBoard, MLflow and trackio keep them on this machine, Weights & Biases sends them to its servers.",
        group="saving",
    )

    @field_validator("batch_size", mode="plain")
    @classmethod
    def _read_batch_size(cls, value: Any) -> int | str:
        # Read as a whole: pydantic would complain of a union once for each of its branches.
        text = str(value).strip() if isinstance(value, int | float | str) and not isinstance(value, bool) else ""
        if text == "auto":
            return text
        if not (text.isdecimal() and len(text) < 6 and 1 <= int(text) <= 65536):
            raise ValueError("it must be a whole number between 1 and 65536, or auto")
        return int(text)


class SampleSettings(Settings):
    """The prompts that are answered again and again while it trains."""

    prompts: list[Annotated[str, Field(min_length=1, max_length=4000)]] = knob(
        [],
        "Watched prompts",
        "Answered at the start and at every evaluation; empty takes three from the rows set aside.",
        group="saving",
        max_length=20,
    )
    max_new_tokens: int = knob(
        60,
        "Length of their answers",
        "The most tokens of each of these answers.",
        group="saving",
        unit="tokens",
        ge=1,
        le=4096,
    )
    scored: int = knob(
        64,
        "Scored answers",
        "How many rows set aside are answered and scored at every evaluation, where a task writes its answers; writing is slow, and 0 scores none.",
        group="saving",
        unit="rows",
        ge=0,
        le=1_000_000,
    )


class Config(Settings):
    """A whole training, as it stands in a YAML file, in a run folder and in the form."""

    job: Literal["train"] = "train"
    name: str = knob("", "Name", "What this run is called; empty makes one from model and data.", max_length=80)
    model: ModelSettings = ModelSettings()
    task: str = knob("chat", "Task", "What it learns to do.", max_length=50)
    data: DataSettings = DataSettings()
    method: SerializeAsAny[Settings] = Field(default_factory=lambda: _default_method())
    train: TrainSettings = TrainSettings()
    samples: SampleSettings = SampleSettings()
    origins: dict[str, str] = Field(
        {}, description="Where each value came from, by dotted key; a value without an entry is the default."
    )

    @field_validator("method", mode="before")
    @classmethod
    def _find_method(cls, value: Any) -> Any:
        """The knobs depend on the method: its own class reads them."""
        from core import methods

        if isinstance(value, methods.Method):
            return value
        if not isinstance(value, Mapping):
            raise ValueError("the method is a group of settings that begins with its name")
        knobs = dict(value)
        method = methods.find(knobs.pop("name", "lora"))
        try:
            return method.model_validate(knobs)
        except ValidationError as error:
            raise Problem.join(_explain(method, detail, "method.") for detail in error.errors()) from None

    @field_validator("task")
    @classmethod
    def _find_task(cls, value: str) -> str:
        from core import objectives

        return objectives.find(value).name

    @model_validator(mode="after")
    def _check_metric(self) -> Self:
        from core import objectives

        measures = ("loss", *objectives.find(self.task).measures)
        if self.train.early_stopping and self.train.early_stopping_metric not in measures:
            raise Problem(
                "The task {task} does not measure {metric}.",
                "It measures {measures}.",
                "Choose one of them.",
                field="train.early_stopping_metric",
                task=self.task,
                metric=self.train.early_stopping_metric,
                measures=", ".join(measures),
            )
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """The configuration in a YAML file."""
        return cls.read(load_yaml(path))

    @property
    def title(self) -> str:
        """The run's name: the given one, or one made of model and data."""
        return self.name or f"{Path(self.model.name).name} {Path(self.data.train.removeprefix('sample:')).stem}"

    def to_data(self) -> dict[str, Any]:
        """Plain data that `read` takes back."""
        data = self.model_dump(mode="json")
        data["method"] = {"name": self.method.name} | data["method"]  # type: ignore[attr-defined]
        return data

    def to_yaml(self) -> str:
        """The YAML text that `load` reads back."""
        return yaml.safe_dump(self.to_data(), sort_keys=False, allow_unicode=True)


def _default_method() -> Settings:
    from core import methods

    return methods.find("lora")()


# Safe in both forms; the one in C, which a few installations lack, is ten times as fast.
_DEEPEST = 100
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _check_depth(text: str) -> None:
    """Refuse what is nested so deeply that the loader, which is C and calls itself, would bring down the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"nested more than {_DEEPEST} levels deep")


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file; a Problem names line and column when it is none."""
    try:
        text = path.read_text(encoding="utf-8")
        _check_depth(text)
        loader = _LOADER(text)
        try:
            data = loader.get_single_data()
        finally:
            loader.dispose()
    except FileNotFoundError:
        raise Problem(
            "There is no file {path}.", to_do="Check the name, or see `python -m core presets`.", path=path
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(
            "{path} cannot be read.", "{error}", "Give a YAML file in UTF-8.", path=path, error=error
        ) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise Problem(
            "{path} is no valid YAML.", "{error}", "Mend that line and try again.", path=path, error=error
        ) from None
    if not isinstance(data, dict):
        raise Problem(
            "{path} holds no settings.", to_do="It must be a YAML mapping such as `train: {{epochs: 3}}`.", path=path
        )
    return data


def assign(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key (``train.max_steps``) in nested plain data."""
    *groups, last = key.split(".")
    for group in groups:
        inner = data.get(group)
        data[group] = data = dict(inner) if isinstance(inner, Mapping) else {}
    data[last] = value


def parse_assignment(text: str) -> tuple[str, Any]:
    """`key=value` from the command line; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise Problem("{text} sets nothing.", to_do="Write key=value, such as train.max_steps=50.", text=repr(text))
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        return key.strip(), value


def fields(settings: type[Settings], prefix: str = "") -> dict[str, FieldInfo]:
    """Every knob of a group by dotted key, nested groups included, in reading order."""
    found: dict[str, FieldInfo] = {}
    for name, field in settings.model_fields.items():
        if (
            isinstance(field.annotation, type)
            and issubclass(field.annotation, Settings)
            and field.annotation is not Settings
        ):
            found |= fields(field.annotation, f"{prefix}{name}.")
        elif field.title is not None:
            found[prefix + name] = field
    return found


def _explain(settings: type[Settings], detail: Mapping[str, Any], prefix: str = "") -> Problem:
    """One of pydantic's complaints in the user's words."""
    path = [str(part) for part in detail["loc"]]
    known = set(fields(settings, prefix))
    key = prefix + ".".join(path)
    # A union or a list adds the branch or position that it tried, which is no setting of ours.
    while "." in key and key not in known and key.rsplit(".", 1)[0] in known:
        key = key.rsplit(".", 1)[0]
    given, context, kind = detail.get("input"), detail.get("ctx", {}), detail["type"]
    shown = repr(given) if len(repr(given)) <= 80 else repr(given)[:77] + "..."
    if isinstance(error := context.get("error"), Problem):
        return error
    if kind == "extra_forbidden":
        # A form draws no field for it, so the sentence goes where the whole group is shown.
        near = difflib.get_close_matches(path[-1], [name.rsplit(".", 1)[-1] for name in known], 1)
        if near:
            return Problem("There is no setting {key}.", to_do="Did you mean {near}?", field=key, key=key, near=near[0])
        return Problem("There is no setting {key}.", to_do="Remove it.", field=key, key=key)
    if kind in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
        limit = next(iter(context.values()))
        sentence = {
            "greater_than_equal": "It must be at least {limit}.",
            "greater_than": "It must be more than {limit}.",
            "less_than_equal": "It must be at most {limit}.",
            "less_than": "It must be less than {limit}.",
        }[kind]
        return Problem("{key} cannot be {given}.", to_do=sentence, field=key, key=key, given=shown, limit=limit)
    if kind == "literal_error":
        return Problem(
            "{key} cannot be {given}.",
            to_do="Choose one of {expected}.",
            field=key,
            key=key,
            given=shown,
            expected=context["expected"],
        )
    if kind.startswith(("int_", "float_", "finite")):
        return Problem("{key} cannot be {given}.", to_do="Give a number.", field=key, key=key, given=shown)
    if kind.startswith("bool"):
        return Problem("{key} cannot be {given}.", to_do="Give true or false.", field=key, key=key, given=shown)
    return Problem(
        "{key} cannot be {given}.",
        "{reason}.",
        field=key,
        key=key,
        given=shown,
        reason=detail["msg"].removeprefix("Value error, "),
    )
