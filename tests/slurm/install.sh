#!/usr/bin/env bash
# Installs Debian's Slurm and munge for the tests in this folder, where they are missing. Where it cannot (no root, no
# apt-get, no network) it says so, and the tests are skipped.
set -euo pipefail
PATH=$PATH:/usr/sbin
missing=()
for program in slurmctld slurmd munged sbatch; do
    command -v "$program" >/dev/null || missing+=("$program")
done
[[ ${#missing[@]} == 0 ]] && exit 0
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "no ${missing[*]}: the tests on Slurm are skipped (apt-get install slurm-wlm munge, as root)" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -q && apt-get install -y -q --no-install-recommends slurm-wlm munge; }; then
    echo "Debian's slurm-wlm and munge cannot be installed: the tests on Slurm are skipped" >&2
fi
