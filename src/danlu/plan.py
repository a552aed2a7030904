"""What a recipe would do before anything runs: stages, sizes, FLOPs, memory, time and cost.

In:  a recipe, and a quick measurement of this machine in every device and dtype that the recipe computes with.
Out: a table as text.
Left out: stages whose work depends on the data alone (corpus, tokenizer, rankings, reward, evaluation, and tuning that
goes by epochs): they are listed without an estimate rather than with a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from danlu import costs, device
from danlu.align import PPOSettings, PracticeSettings, RewardSettings
from danlu.model.config import ModelConfig
from danlu.model.count import kv_bytes, parameters
from danlu.pipeline import StageSpec, shape_of, stages_of
from danlu.recipe import Recipe
from danlu.train import PretrainSettings, SFTSettings

# Share of the matrix-product ceiling that training of the recipe tang reached on two AVX2 cores (7,200 tokens/s).
_EFFICIENCY = 0.55


@dataclass(frozen=True)
class Estimate:
    """What one stage will cost; None where it depends on the data."""

    tokens: float | None = None
    flops: float | None = None
    memory: float | None = None


def describe(recipe: Recipe, price_per_hour: float | None = None) -> str:
    """The table that ``danlu plan`` prints.

    Args:
        recipe: what would be run.
        price_per_hour: of this machine, in any currency; None leaves the cost out.

    Raises:
        UserError: a stage is to run on a device that is not here, or in a dtype that does not exist.
    """
    config, machines = shape_of(recipe), _machines(recipe)
    speeds = {it: device.matmul_flops(it.compute_dtype, it.kind) * _EFFICIENCY for it in set(machines.values())}
    lines = [*_on(recipe, machines, speeds), _model(recipe, config), *_adapters(recipe, config)]
    lines.append(f"{'stage':<11}{'life':<18}{'tokens':>10}{'FLOPs':>10}{'memory':>10}{'minutes':>9}  needs")
    total = 0.0
    for spec in stages_of(recipe):
        estimate = _estimate(spec, recipe, config)
        minutes = None if estimate.flops is None else estimate.flops / speeds[machines[spec.name]] / 60
        total += minutes or 0.0
        cells = [_count(estimate.tokens), _count(estimate.flops), _bytes(estimate.memory)]
        time = "-" if minutes is None else f"{minutes:.1f}"
        row = f"{spec.name:<11}{spec.life:<18}" + "".join(f"{cell:>10}" for cell in cells)
        lines.append(f"{row}{time:>9}  {', '.join(spec.needs)}")
    cost = f", {total / 60 * price_per_hour:.2f} at {price_per_hour:g} an hour" if price_per_hour is not None else ""
    lines.append(f"about {total:.0f} minutes of matrix products{cost}; '-' depends on the data")
    return "\n".join(lines)


def _machines(recipe: Recipe) -> dict[str, device.Device]:
    """Stage -> the machine that its own settings mean, for every stage that computes with models."""
    settings = ((spec.name, recipe.sections[spec.name]) for spec in stages_of(recipe))
    return {name: found.machine() for name, found in settings if isinstance(found, device.ComputeSettings)}


def _on(recipe: Recipe, machines: Mapping[str, device.Device], speeds: Mapping[device.Device, float]) -> list[str]:
    """What the recipe runs on; a line for each kind of machine, with its stages, if they do not all share one."""
    lines = []
    for machine in dict.fromkeys(machines.values()):
        stages = [name for name, on in machines.items() if on == machine]
        who = f"recipe {recipe.name}" if len(speeds) == 1 else f"recipe {recipe.name}, {', '.join(stages)},"
        lines.append(f"{who} on {machine.describe()}, {speeds[machine] / 1e9:.0f} GFLOP/s expected in training")
    return lines


def _model(recipe: Recipe, config: ModelConfig | None) -> str:
    """The model's shape and size in one line."""
    if config is None:
        base = cast(PretrainSettings, recipe.sections["pretrain"]).base
        return f"model  {base} as it is; its size is read when the run starts"
    size = parameters(config)
    return (
        f"model  {config.n_layers} layers, d_model {config.d_model}, vocabulary {config.vocab_size:,}: "
        f"{size.total:,} parameters ({size.active:,} active), {kv_bytes(config):,} bytes of bf16 cache a token"
    )


def _adapters(recipe: Recipe, config: ModelConfig | None) -> list[str]:
    """A line for each stage that trains an adapter: which, and how much of the model that is."""
    lines = []
    for spec in stages_of(recipe):
        adapter = costs.adapter_of(recipe.sections[spec.name])
        if adapter.kind == "none":
            continue
        said = f"{spec.name} trains {adapter.kind} of rank {adapter.rank} on a base in {adapter.base_bits} bits"
        if config is not None:
            trained = costs.footprint_of(config, recipe.sections[spec.name]).trained
            said += f": {trained:,} parameters, {trained / parameters(config).total:.1%} of the model's"
        lines.append(said)
    return lines


def _estimate(spec: StageSpec, recipe: Recipe, config: ModelConfig | None) -> Estimate:
    settings = recipe.sections[spec.name]
    if config is None:
        return Estimate()
    if isinstance(settings, (PretrainSettings, SFTSettings)):
        rows = settings.micro_batch or settings.batch_size
        memory = costs.training_memory(config, settings, rows, settings.seq_len)
        if not settings.steps:
            return Estimate(memory=memory)
        tokens = settings.steps * settings.batch_size * settings.seq_len
        return Estimate(tokens, tokens * costs.learning_flops(config, settings, settings.seq_len), memory)
    if isinstance(settings, PracticeSettings):
        return _practice(settings, config, cast(RewardSettings, recipe.sections["reward"]))
    return Estimate()


def _practice(settings: PracticeSettings, config: ModelConfig, reward: RewardSettings) -> Estimate:
    """Sampling, a scoring pass of every model, and forward with backward of those that learn in every epoch."""
    learning = 2 if isinstance(settings, PPOSettings) else 1  # policy and critic, or the policy alone
    tokens = settings.iterations * settings.batch_size * settings.max_new_tokens
    read, learnt = (f(config, settings, settings.max_new_tokens) for f in (costs.forward_flops, costs.learning_flops))
    trained = learning + bool(settings.mix)  # the policy once more on people's own answers
    flops = read * (2 + (2 + learning)) + learnt * trained * settings.epochs
    return Estimate(tokens, tokens * flops, costs.practice_memory(config, settings, reward))


def _count(value: float | None) -> str:
    if value is None:
        return "-"
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}"


def _bytes(value: float | None) -> str:
    return "-" if value is None else f"{_count(value)}B"
