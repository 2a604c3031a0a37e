"""Helpers for components built on ``transformers``: training, checkpoints, saving, loading, and the merge proof.

A trainer of weights does roughly this::

    loaded = ctx.model()
    model = ctx.adapter.attach(loaded.model, seed=ctx.seed) if ctx.adapter else loaded.model
    with hf.quiet():
        args = hf.training_arguments(TrainingArguments, ctx, ctx.options)
        trainer = Trainer(model, args=args, train_dataset=rows, processing_class=loaded.tokenizer)
    outcome = hf.train(ctx, trainer)
    return hf.finish(ctx, trainer.model, loaded.tokenizer, outcome=outcome, probes=[...])

Importing this package is cheap; torch and transformers come in with the first name that is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunekit._lazy import attach

if TYPE_CHECKING:
    from tunekit.plugins.hf.arguments import compute_dtype as compute_dtype
    from tunekit.plugins.hf.arguments import computing as computing
    from tunekit.plugins.hf.arguments import default_device as default_device
    from tunekit.plugins.hf.arguments import device_defaults as device_defaults
    from tunekit.plugins.hf.arguments import training_arguments as training_arguments
    from tunekit.plugins.hf.callback import TunekitCallback as TunekitCallback
    from tunekit.plugins.hf.checkpoints import good_checkpoint as good_checkpoint
    from tunekit.plugins.hf.completion_trainer import CompletionTrainer as CompletionTrainer
    from tunekit.plugins.hf.completion_trainer import Objective as Objective
    from tunekit.plugins.hf.completion_trainer import ObjectiveLoss as ObjectiveLoss
    from tunekit.plugins.hf.completions import CompletionLogps as CompletionLogps
    from tunekit.plugins.hf.completions import CompletionModel as CompletionModel
    from tunekit.plugins.hf.completions import PromptGroup as PromptGroup
    from tunekit.plugins.hf.dropout import dropout_off as dropout_off
    from tunekit.plugins.hf.dropout import tell_dropout as tell_dropout
    from tunekit.plugins.hf.facts import config_facts as config_facts
    from tunekit.plugins.hf.facts import folder_tokenizer as folder_tokenizer
    from tunekit.plugins.hf.facts import model_facts as model_facts
    from tunekit.plugins.hf.facts import token_text as token_text
    from tunekit.plugins.hf.finishing import finish as finish
    from tunekit.plugins.hf.loading import load_folder as load_folder
    from tunekit.plugins.hf.low_rank import fused_low_rank as fused_low_rank
    from tunekit.plugins.hf.perplexity import Perplexity as Perplexity
    from tunekit.plugins.hf.perplexity import measure_perplexity as measure_perplexity
    from tunekit.plugins.hf.products import fast_products as fast_products
    from tunekit.plugins.hf.prompts import preview_prompts as preview_prompts
    from tunekit.plugins.hf.prompts import prompt_room as prompt_room
    from tunekit.plugins.hf.prompts import prompt_rows as prompt_rows
    from tunekit.plugins.hf.prompts import score_samples as score_samples
    from tunekit.plugins.hf.rewards import RewardScores as RewardScores
    from tunekit.plugins.hf.rewards import checked_scores as checked_scores
    from tunekit.plugins.hf.rewards import score as score
    from tunekit.plugins.hf.rounds import Rounds as Rounds
    from tunekit.plugins.hf.rounds import RoundsOutcome as RoundsOutcome
    from tunekit.plugins.hf.rounds import RoundState as RoundState
    from tunekit.plugins.hf.rounds import TrainedWeights as TrainedWeights
    from tunekit.plugins.hf.samples import Samples as Samples
    from tunekit.plugins.hf.samples import compare_samples as compare_samples
    from tunekit.plugins.hf.samples import draw_samples as draw_samples
    from tunekit.plugins.hf.samples import fixed_prompts as fixed_prompts
    from tunekit.plugins.hf.samples import kl_between as kl_between
    from tunekit.plugins.hf.samples import prompt_row as prompt_row
    from tunekit.plugins.hf.samples import start_samples as start_samples
    from tunekit.plugins.hf.samples import win_rate as win_rate
    from tunekit.plugins.hf.sampling import Sampled as Sampled
    from tunekit.plugins.hf.sampling import prompt_ids as prompt_ids
    from tunekit.plugins.hf.sampling import sample as sample
    from tunekit.plugins.hf.saving import count_parameters as count_parameters
    from tunekit.plugins.hf.saving import save_model as save_model
    from tunekit.plugins.hf.saving import strip_quantization as strip_quantization
    from tunekit.plugins.hf.score_model import ScoreModel as ScoreModel
    from tunekit.plugins.hf.silence import quiet as quiet
    from tunekit.plugins.hf.throughput import flops_per_token as flops_per_token
    from tunekit.plugins.hf.throughput import measured_peak as measured_peak
    from tunekit.plugins.hf.throughput import speed_metrics as speed_metrics
    from tunekit.plugins.hf.token_shards import TokenRow as TokenRow
    from tunekit.plugins.hf.token_store import TokenStore as TokenStore
    from tunekit.plugins.hf.token_store import token_key as token_key
    from tunekit.plugins.hf.token_store import tokenizer_fingerprint as tokenizer_fingerprint
    from tunekit.plugins.hf.token_trainer import TokenTrainer as TokenTrainer
    from tunekit.plugins.hf.training import TrainOutcome as TrainOutcome
    from tunekit.plugins.hf.training import train as train
    from tunekit.plugins.hf.training import trained_in_float32 as trained_in_float32
    from tunekit.storage import storage_errors as storage_errors

_WHERE = {
    "tunekit.plugins.hf.arguments": (
        "compute_dtype",
        "computing",
        "default_device",
        "device_defaults",
        "training_arguments",
    ),
    "tunekit.plugins.hf.callback": ("TunekitCallback",),
    "tunekit.plugins.hf.checkpoints": ("good_checkpoint",),
    "tunekit.plugins.hf.completion_trainer": ("CompletionTrainer", "Objective", "ObjectiveLoss"),
    "tunekit.plugins.hf.completions": ("CompletionLogps", "CompletionModel", "PromptGroup"),
    "tunekit.plugins.hf.dropout": ("dropout_off", "tell_dropout"),
    "tunekit.plugins.hf.facts": ("config_facts", "folder_tokenizer", "model_facts", "token_text"),
    "tunekit.plugins.hf.finishing": ("finish",),
    "tunekit.plugins.hf.loading": ("load_folder",),
    "tunekit.plugins.hf.low_rank": ("fused_low_rank",),
    "tunekit.plugins.hf.products": ("fast_products",),
    "tunekit.plugins.hf.prompts": ("preview_prompts", "prompt_room", "prompt_rows", "score_samples"),
    "tunekit.plugins.hf.rewards": ("RewardScores", "checked_scores", "score"),
    "tunekit.plugins.hf.rounds": ("RoundState", "Rounds", "RoundsOutcome", "TrainedWeights"),
    "tunekit.plugins.hf.score_model": ("ScoreModel",),
    "tunekit.plugins.hf.silence": ("quiet",),
    "tunekit.plugins.hf.samples": (
        "Samples",
        "compare_samples",
        "draw_samples",
        "fixed_prompts",
        "kl_between",
        "prompt_row",
        "start_samples",
        "win_rate",
    ),
    "tunekit.plugins.hf.sampling": ("Sampled", "prompt_ids", "sample"),
    "tunekit.plugins.hf.saving": ("count_parameters", "save_model", "strip_quantization"),
    "tunekit.plugins.hf.token_trainer": ("TokenTrainer",),
    "tunekit.storage": ("storage_errors",),
    "tunekit.plugins.hf.perplexity": ("Perplexity", "measure_perplexity"),
    "tunekit.plugins.hf.throughput": ("flops_per_token", "measured_peak", "speed_metrics"),
    "tunekit.plugins.hf.token_shards": ("TokenRow",),
    "tunekit.plugins.hf.token_store": ("TokenStore", "token_key", "tokenizer_fingerprint"),
    "tunekit.plugins.hf.training": ("TrainOutcome", "train", "trained_in_float32"),
}

__getattr__, __dir__, __all__ = attach(__name__, _WHERE)
