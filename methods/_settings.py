"""Settings of methods: their types, the defaults every method starts from."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Types of settings: a subclass that gives a field another default keeps its bounds by naming the type.
Rate = Annotated[float, Field(ge=0)]
# No count is near a million; a slip of zeros is told before it takes all memory.
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Positive = Annotated[int, Field(ge=1, le=1_000_000)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Template = Annotated[str, Field(pattern=r"\{\}")]  # {} stands for the class name
Wording = Annotated[str, Field(pattern=r"^$|\{\}")]  # the same, or nothing


class Settings(BaseModel):
    """What every method can be told about its optimisation; defaults are the field's.

    Sources: Dassl.pytorch dassl/config/defaults.py and the YAML files of CoOp, which every method of the
    family inherits. Subclasses add their own fields; the paper's values are the defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Rate = 0.002
    epochs: Count = 0
    steps: Count = Field(0, description="optimiser steps in all; replaces epochs if not 0")
    batch_size: Positive = 32
    drop_last: bool = Field(True, description="leave out a short last batch, unless it is the only one")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD only")
    weight_decay: float = Field(5e-4, ge=0, description="acts on the prompts although no YAML says so")
    eps: float = Field(1e-8, gt=0, description="Adam and AdamW only")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="Adam and AdamW only")
    warmup_epochs: Count = Field(1, description="epochs at warmup_lr before the cosine starts")
    warmup_lr: Rate = 1e-5
    schedule: Literal["epoch", "step"] = Field("epoch", description="how often the cosine is stepped")
    lr_min: Rate = Field(0.0, description="where the cosine ends")
    gpa_mean: float = Field(0.0, description="epoch that weighs most in Gaussian prompt aggregation")
    gpa_std: Rate = Field(0.0, description="width of its weights in epochs; 0 = no aggregation")
    crop_min: float = Field(0.08, gt=0, le=1, description="smallest area of the random crop")
    logit_scale: Rate = Field(0.0, description="s of the logits; 0 = the backbone's own")


class PromptSettings(Settings):
    """Settings of methods whose text input is ``<context> <class name>.``"""

    n_ctx: Count = Field(4, description="context tokens")
    ctx_init: str = Field("a photo of a", description="words the context starts from; empty = random")

    @model_validator(mode="after")
    def _words_fit(self) -> "PromptSettings":
        if self.ctx_init and len(self.ctx_init.split()) < self.n_ctx <= 4:
            raise ValueError("ctx_init has fewer words than n_ctx; ctx_init='' starts from random tokens")
        return self
