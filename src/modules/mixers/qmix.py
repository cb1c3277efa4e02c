"""PyMARL's name for the QMIX mixer."""

from modules.mixers.nmix import Mixer

# PyMARL and PyMARL2 have two classes for one function: `hypernet_layers: 2` is PyMARL2's `nmix`, 1
# the original.
QMixer = Mixer
