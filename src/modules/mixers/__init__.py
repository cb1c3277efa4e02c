"""Mixers: from the agents' utilities and the state to the joint value, `(qs [..., A], states [...,
S]) -> [..., 1]`.

Mixers that take `groups=G` in their constructor exist G times side by side: `(qs [G, ..., A],
states [..., S] or [G, ..., S]) -> [G, ..., 1]`. `takes_actions` tells whether the joint value is
`mixer(qs, states)` or, for DMAQer, `mixer.joint(qs, states, actions, max_qs)`.

A mixer's `ranges` say what the keys that only it reads must be; it checks them when it is built,
and learners check all of them (`RANGES`) before anything is.
"""

import inspect
from types import SimpleNamespace
from typing import Any

from modules.mixers.dmaq_general import DMAQer
from modules.mixers.linear import LinearMixer
from modules.mixers.nmix import Mixer
from modules.mixers.qatten import QattenMixer
from modules.mixers.qmix_central_no_hyper import QMixerCentralFF
from modules.mixers.qtran import QTranBase
from modules.mixers.vdn import VDNMixer
from utils.ranges import Range
from utils.registry import Registry

REGISTRY = Registry("mixer")
register = REGISTRY.register

REGISTRY["vdn"] = VDNMixer
REGISTRY["qmix"] = Mixer
REGISTRY["nmix"] = Mixer  # PyMARL2's second name for it
REGISTRY["qatten"] = QattenMixer
REGISTRY["linear"] = LinearMixer
REGISTRY["dmaq"] = DMAQer
REGISTRY["qmix_central_ff"] = QMixerCentralFF
REGISTRY["qtran_base"] = QTranBase


def make_mixer(name: str, args: SimpleNamespace) -> Any:
    """The mixer of a name; one written for PyMARL2 may take no arguments (`VDNMixer()`)."""
    mixer = REGISTRY[name]
    return mixer(args) if inspect.signature(mixer).parameters else mixer()


RANGES: dict[str, Range] = {
    key: wanted
    for mixer in (Mixer, QattenMixer, DMAQer, QMixerCentralFF, QTranBase)
    for key, wanted in mixer.ranges.items()
}
