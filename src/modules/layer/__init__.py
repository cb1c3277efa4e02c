"""PyMARL2's import path of single layers."""
