"""What the trainers share: the model, the arguments, and our hooks into TRL's training loop.

The loop is the `transformers` Trainer below TRL's trainers, so `accelerate launch` works; we add our batches, a loss
that stops on NaN, sealed resume state and progress.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, TrainerCallback

from cai import canon
from cai.config import DpoSection, RewardSection, TrainerSection
from cai.errors import UserError
from cai.model.code import asked_for
from cai.train.adapters import in_place
from cai.train.admit import rows_at_once, sharding
from cai.train.data import Example
from cai.train.job import Job
from cai.train.tripwires import NotFinite


class Hooks:
    """Mixed in before a TRL trainer. Expects `self.job`."""

    job: Job
    n_tokens_seen = 0
    """Tokens in forward and backward passes on this process, prompts and padding-free."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As the trainer that this is mixed into."""
        self._ids: list[str] = []
        super().__init__(*args, **kwargs)
        for weight in self.model.parameters():
            if weight.requires_grad:  # bfloat16, which TRL gives adapters over 4 bits, would round small updates away
                weight.data = weight.data.float()
        in_place(self.model)

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers, but under FSDP nothing is handed out or summed over processes in bfloat16.

        accelerate would round the log-probabilities and scores that a model returns, and the gradients.
        """
        super().create_accelerator_and_postprocess()
        if self.accelerator.is_fsdp2 and self.job.dtype == "bfloat16":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = policy

    def _prepare_input(self, data: Any) -> Any:
        """Return what a batch holds, on this process's device; under DeepSpeed its labels would be rounded as well."""
        return data.to(self.args.device) if isinstance(data, torch.Tensor) else super()._prepare_input(data)

    def in_precision(self) -> Any:
        """Return the context that the model is asked in outside its training step, where accelerate sets none."""
        device = self.accelerator.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.job.dtype == "bfloat16")

    def _send_telemetry(self) -> None:
        """Send nothing: TRL would report that it is used."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: TRL's would overwrite ours."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # rendered and tokenised already, see cai.train.data

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # the dataset is in the order of training already

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            self.job.folder.seal(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")

    def facts(self) -> dict[str, Any]:
        """Return what the checkpoint's manifest shall say beside the usual."""
        return {}

    def held_out(self, examples: list[Example], folder: Path) -> None:
        """Measure the trained model on held-out rows; what comes of it lies in `folder`."""

    def examples_of(self, inputs: dict[str, Any]) -> list[Example]:
        """Return the rows of a batch."""
        return [self.job.examples[i] for i in inputs["row"].tolist()]

    def checked(self, loss: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the loss, or raise NotFinite with the ids of the rows."""
        ids = [example.id for example in self.examples_of(inputs)]
        if broken := not_finite(loss, ids):
            raise NotFinite("the loss", self.state.global_step + 1, f"the rows of this batch: {', '.join(broken)}")
        self._ids += ids
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        ids, self._ids = self._ids, []
        if norm is not None and not math.isfinite(norm):  # though the loss was: the step with it comes next
            every = ", ".join(gather_object(ids))
            raise NotFinite("the gradient", self.state.global_step + 1, f"the rows of this step: {every}")
        return norm


def not_finite(figures: torch.Tensor, ids: list[str]) -> list[str]:
    """Return the rows of the processes that have come upon NaN, of which `ids` are this one's; none where none has.

    All processes have to ask, and all are told the same: one that stopped alone would leave the others waiting for it.
    """
    return list(gather_object([] if torch.isfinite(figures).all() else ids))


def asked_to_stop(job: Job) -> bool:
    """Return whether any process was asked to stop: a signal may reach one of them a step earlier. All have to ask."""
    return any(gather_object([job.stop.is_set()]))


class NothingLeft(Exception):
    """The last step was done before this training was resumed."""


class Progress(TrainerCallback):
    """Writes the curve, tells how far training is, and passes on a request to stop."""

    def __init__(self, job: Job, tokens_seen: Callable[[], int]) -> None:
        self._job, self._tokens_seen = job, tokens_seen
        self._start: tuple[int, float, int] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise NothingLeft before a step too many: `transformers` looks whether to stop only after it has done one."""
        if control.should_training_stop or state.global_step >= state.max_steps:
            raise NothingLeft

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock with the first step of this session, so that a resumed training estimates rightly."""
        if self._start is None:
            self._start = (state.global_step, time.monotonic(), self._tokens_seen())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Add a line to the curve; then save and leave where that was asked for."""
        if not logs or "loss" not in logs:
            return
        if state.is_world_process_zero:
            row = self._row(state, logs)
            with self._job.folder.curve.open("ab") as file:
                file.write(canon.dumps(row) + b"\n")
            if self._job.on_step:
                self._job.on_step(row)
        if asked_to_stop(self._job):
            control.should_save = control.should_training_stop = True

    def _row(self, state: Any, logs: dict[str, Any]) -> dict[str, Any]:
        assert self._start is not None
        first, began, tokens = self._start
        elapsed_s = time.monotonic() - began
        left = state.max_steps - state.global_step
        named = {"learning_rate": "lr", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}
        row = {named.get(k, k): v for k, v in logs.items() if isinstance(v, int | float) and math.isfinite(v)}
        return {
            **row,
            "step": state.global_step,
            "steps": state.max_steps,
            "eta_s": round(left * elapsed_s / max(1, state.global_step - first), 1),
            "tokens_per_s": round((self._tokens_seen() - tokens) / max(elapsed_s, 1e-9), 1),
        }


def load_model(job: Job) -> Any:
    """Return the base model in the precision of the job. Weights that are trained stay in float32.

    Rounding every small update to bfloat16 would lose most of it; a frozen base loses nothing. (DeepSpeed has its own
    float32 copy to update; what the model holds, and what is saved of it, is that in bfloat16.)
    """
    with asked_for(job.base):
        model = AutoModelForCausalLM.from_pretrained(
            job.base,
            dtype=weight_dtype(job),
            use_safetensors=True,
            trust_remote_code=job.trust_remote_code,
            quantization_config=quantization(job),
            attn_implementation=attention(job),
        )
    model.config.use_cache = False
    return model


def load_plain(job: Job) -> Any:
    """Return the base once more, to sample from it with the adapter merged into it; None without an adapter.

    None also for a base in 4 bits or sharded, into which nothing is merged: sampling then goes through the adapter.
    """
    lora = job.settings.lora
    return load_model(job) if lora and lora.base == "full" and not sharding() else None


def checkpoints(job: Job) -> bool:
    """Return whether activations are computed again on the way back, and not kept."""
    asked = job.settings.checkpointing
    return job.device == "cuda" if asked is None else asked


def attention(job: Job) -> str | None:
    """Return the attention to load a model with: flash attention where it is installed, else None (the model's own).

    It takes 16-bit numbers on a GPU, and no mask but padding: pairs, whose answers are hidden from each other by one,
    go without it.
    """
    from transformers.utils import is_flash_attn_2_available

    has_pairs = isinstance(job.settings, DpoSection | RewardSection)
    fits = job.device == "cuda" and weight_dtype(job) == torch.bfloat16 and not has_pairs
    return "flash_attention_2" if fits and is_flash_attn_2_available() else None


def weight_dtype(job: Job) -> torch.dtype:
    """Return the precision to load the base in."""
    frozen = job.settings.lora is not None
    return torch.bfloat16 if job.dtype == "bfloat16" and frozen else torch.float32


def quantization(job: Job) -> Any:
    """Return how the frozen base is held in 4 bits, or None. Raises UserError without a GPU."""
    if job.settings.lora is None or job.settings.lora.base == "full":
        return None
    if job.device != "cuda":
        raise UserError("train.….lora.base: 'nf4' needs a CUDA GPU and bitsandbytes; set it to full to train here")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def lora_config(settings: TrainerSection, task: str = "CAUSAL_LM") -> Any:
    """Return peft's configuration of the adapter, or None to train all weights."""
    if settings.lora is None:
        return None
    from peft import LoraConfig

    lora = settings.lora
    targets = lora.targets if lora.targets == "all-linear" else list(lora.targets)
    return LoraConfig(
        task_type=task, r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets
    )


def arguments(job: Job, **further: Any) -> dict[str, Any]:
    """Return the keyword arguments that every TRL config takes from us."""
    from accelerate import PartialState

    settings, steps = job.settings, job.steps
    on_cpu = job.device == "cpu"
    state = PartialState(cpu=on_cpu)
    micro = rows_at_once(settings, state.num_processes)
    return {
        "output_dir": str(job.folder.state),
        "max_steps": steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": settings.batch_size // (micro * state.num_processes),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(settings.schedule, settings.schedule),
        "warmup_steps": math.ceil(settings.warmup * steps),
        "weight_decay": 0.0,
        "max_length": None,
        "seed": job.seed,
        "data_seed": job.seed,
        "use_cpu": on_cpu,
        "bf16": job.dtype == "bfloat16",
        "gradient_checkpointing": checkpoints(job),
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": settings.save_steps or max(1, steps // 10),
        "report_to": [],
        "push_to_hub": False,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": not on_cpu,
        **further,
    }


def on_one_device() -> dict[str, Any]:
    """Return the argument that keeps TRL's own reference in one piece: under FSDP it would spread it over all GPUs."""
    return {"model_init_kwargs": {"device_map": None}} if sharding() == "FSDP" else {}


def dataset(job: Job) -> Any:
    """Return the rows in the order of training, as TRL wants them: a `datasets.Dataset`, here of row numbers."""
    from datasets import Dataset

    return Dataset.from_dict({"row": job.order})
