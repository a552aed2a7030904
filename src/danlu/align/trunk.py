"""One frozen trunk under four models: policy, reference, reward model and critic, each through an adapter of its own.

In:  a stage of practice with the settings ``adapter``, the SFT model, the reward stage's directory.
Out: the four models: whole ones, or four views of the very same frozen weights.
Left out: adapters (``hub.lora``), what the models are used for (``learner``, ``rewards``, ``ppo``).

The reference is the trunk with nothing on it, so it is the SFT model to the last bit. Policy and critic share no weight
that is trained. A reward model joins if it was trained with an adapter on the very same base, kept in the same bits;
another base under its adapter would be another judge. The critic's adapter begins as the reward model's.
"""

from __future__ import annotations

import torch

from danlu import device, hub
from danlu.hub.adapter import read_identity, with_adapter
from danlu.hub.lora import adapted, bare, sharing
from danlu.model.decoder import Decoder
from danlu.model.heads import ScalarHead
from danlu.run import Stage
from danlu.streams import stream_seed
from danlu.train.adapters import FOLDER, Adaptable, AdapterSettings, attach, identity

START = "champion"  # among what a stage reads from outside: a model to set out from, in place of the SFT model


def policy_and_reference(
    stage: Stage, settings: AdapterSettings, place: device.Device
) -> tuple[Decoder, Decoder]:  # fmt: skip
    """What is trained, and the SFT model: two models, or one with an adapter and without.

    The policy sets out from the SFT model, or, if it has no adapter on that, from ``START``.
    """
    folder = stage.inputs["sft"] / "model"
    if settings.kind == "none":
        policy, reference = (
            hub.load(one, device=place.kind).compute_in(place.compute_dtype)
            for one in (stage.outside.get(START, folder), folder)
        )
        return policy, reference
    policy = attach(hub.load(folder), settings, stream_seed(stage.seed, stage.name, "adapter"))
    policy.to(place.kind).compute_in(place.compute_dtype)  # now that it is small
    return policy, bare(policy)


def reward_model(stage: Stage, place: device.Device, shared: Decoder | None) -> Decoder:
    """The reward model: its adapter and head on the shared trunk, or a model of its own.

    Args:
        stage: with the inputs ``sft`` and ``reward``.
        place: where it is computed.
        shared: the trunk; None where the policy has no adapter.
    """
    if shared is not None and _is_on_base(stage):
        return with_adapter(_scalar(shared), stage.inputs["reward"] / FOLDER).requires_grad_(False)
    if shared is not None:
        stage.console.say(
            f"{stage.name}: the reward model has no adapter on this very SFT model in these bits and stays a model of "
            "its own; train it with reward.adapter as here to share the trunk", style="dim",
        )  # fmt: skip
    return hub.load(stage.inputs["reward"] / "model", device=place.kind).compute_in(place.compute_dtype)


def critic(stage: Stage, policy: Decoder, settings: AdapterSettings) -> Decoder:
    """The critic: a copy of the reward model; on a shared trunk an adapter that begins as the reward model's, or fresh.

    Args:
        stage: with the inputs ``sft`` and ``reward``.
        policy: on its device.
        settings: of the policy's adapter.
    """
    if not adapted(policy):
        found = hub.load(stage.inputs["reward"] / "model", device=policy.output_weight.device.type)
        return found.compute_in(policy.compute_dtype)
    model = _scalar(bare(policy))
    if _is_on_base(stage):
        with_adapter(model, stage.inputs["reward"] / FOLDER)
    else:
        attach(model, settings, stream_seed(stage.seed, stage.name, "critic"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("score."))
    return model


def _is_on_base(stage: Stage) -> bool:
    """Whether the reward model is an adapter on this stage's SFT model, in the bits in which it is kept here."""
    settings = stage.settings
    assert isinstance(settings, Adaptable), "only stages that may train an adapter have a shared trunk"
    known = read_identity(stage.inputs["reward"] / FOLDER)
    return bool(known) and known == identity(stage.inputs["sft"] / "model", settings.adapter)


def _scalar(trunk: Decoder) -> Decoder:
    """A model with a scalar head of zeros on the same weights."""
    model = sharing(trunk)
    model.head_kind, model.score = "scalar", ScalarHead(model.config.d_model).to(model.embed.weight.device)
    torch.nn.init.zeros_(model.score.weight)
    for part in ("head", "mtp"):
        if hasattr(model, part):
            delattr(model, part)
    return model
