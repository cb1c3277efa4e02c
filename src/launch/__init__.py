"""Many runs: sweeps on this machine, on Slurm and on Ray, which is given what a run needs."""
