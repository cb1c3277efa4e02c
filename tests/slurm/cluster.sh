#!/usr/bin/env bash
# A Slurm cluster of three nodes of one core on this machine, for tests: one slurmd per node, by name.
#   cluster.sh start FOLDER | stop FOLDER        (as root; needs Debian's slurm-wlm and munge)
# FOLDER holds its configuration, state, logs and process ids; SLURM_CONF=FOLDER/slurm.conf makes
# Slurm's commands use it.
set -euo pipefail
command=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
export SLURM_CONF=$folder/slurm.conf

start() {
    mkdir -p "$folder"/{state,log,spool}
    local host
    host=$(hostname -s)
    cat >"$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
SlurmctldPort=16817
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_min_interval=200000
SchedulerType=sched/backfill
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=1
KillWait=30
SlurmdTimeout=30
MpiDefault=none
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=node1 NodeAddr=127.0.0.1 NodeHostname=$host Port=17001 CPUs=1
NodeName=node2 NodeAddr=127.0.0.1 NodeHostname=$host Port=17002 CPUs=1
NodeName=node3 NodeAddr=127.0.0.1 NodeHostname=$host Port=17003 CPUs=1
PartitionName=main Nodes=node1,node2,node3 Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=15
PartitionName=urgent Nodes=node1,node2,node3 MaxTime=60 State=UP PriorityTier=2
END
    [[ -e $folder/munge.key ]] || dd if=/dev/urandom of="$folder/munge.key" bs=1 count=1024 status=none
    chmod 400 "$folder/munge.key"
    # It refuses sockets and logs in folders that others may write to.
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/log/munged.log" \
        --seed-file="$folder/munge.seed"
    slurmctld -c
    local node
    for node in node1 node2 node3; do
        slurmd -N "$node"
    done
    local try
    for ((try = 0; try < 60; try++)); do
        [[ $(sinfo -h -N -p main -o %T 2>/dev/null | grep -c idle) == 3 ]] && return
        sleep 0.5
    done
    echo "the cluster does not come up; see $folder/log" >&2
    exit 1
}

stop() {
    local file pids=() try
    timeout 5 scancel --signal=KILL --full -u root 2>/dev/null || true
    timeout 5 scancel -u root 2>/dev/null || true
    for file in "$folder"/slurmd-node{1,2,3}.pid "$folder"/{slurmctld,munged}.pid; do
        [[ -e $file ]] && pids+=("$(cat "$file")")
    done
    kill "${pids[@]}" 2>/dev/null || true
    for ((try = 0; try < 20; try++)); do
        kill -0 "${pids[@]}" 2>/dev/null || return 0
        sleep 0.5
    done
    kill -KILL "${pids[@]}" 2>/dev/null || true # a slurmd may wait for a job's end
}

case $command in
start) start ;;
stop) stop ;;
*)
    echo "usage: cluster.sh start|stop FOLDER" >&2
    exit 2
    ;;
esac
