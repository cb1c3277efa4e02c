"""Compiled kernels for the CPU, built once on the machine that they run on."""
