"""PyMARL2's second name for the controller."""

from __future__ import annotations

from controllers.basic_controller import BasicMAC


class NMAC(BasicMAC):
    """`BasicMAC`: here it finds out itself whether an agent takes [B * A, F] or, like PyMARL2's,
    [B, A, F].
    """
