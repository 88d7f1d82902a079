#!/usr/bin/env bash
# A table through a real Slurm of one node: every step of reproduce/ is a job of its own, and the table is the same.
#
#   apt-get install slurm-wlm munge            (Debian and Ubuntu; as root, in a container or a machine to spare)
#   bash tests/slurm/one_node.sh               Table 1 of the tiny pair's code model, two jobs at a time
#   TABLE=table3 bash tests/slurm/one_node.sh  another table
#
# Starts munged, slurmctld and slurmd with a configuration of its own in a temporary folder, runs the table with
# LAUNCH="srun -n1", prints the jobs that Slurm counted, checks that there was one for every step, and ends its daemons. On
# a cluster none of this is needed: LAUNCH="srun --gpus=1 -n1" JOBS=16 bash reproduce/table1.sh. Not part of tests/run.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
fail() { echo "error: $*" >&2; exit 2; }
[ "$(id -u)" = 0 ] || fail "the daemons of Slurm start as root only"
for program in munged slurmctld slurmd srun scontrol; do
    command -v $program > /dev/null || fail "$program is missing; apt-get install slurm-wlm munge"
done

folder=$(mktemp -d /tmp/impart-slurm.XXXXXX)
chmod 755 "$folder"
export SLURM_CONF=$folder/slurm.conf
host=$(hostname -s)
mkdir "$folder"/{munge,state,spool,log}

started=()
finish() {
    for pid in "${started[@]}"; do kill "$pid" 2> /dev/null || true; done
    for pid in "${started[@]}"; do wait "$pid" 2> /dev/null || true; done
    [ "${KEEP_SLURM:-no}" = yes ] || rm -rf "$folder"
}
trap finish EXIT

# munge vouches for who sends a message: a key and a socket of its own.
dd if=/dev/urandom of="$folder/munge/key" bs=1 count=1024 status=none
chmod 600 "$folder/munge/key"
munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munge/pid" --seed-file="$folder/munge/seed" > "$folder/log/munged" 2>&1 &
started+=($!)

# No cgroups: a container rarely may make them. Slurm only counts processors here, it does not fence them.
cat > "$SLURM_CONF" <<CONF
ClusterName=one
SlurmctldHost=$host
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/log/jobs
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=$host CPUs=$(nproc --all) Sockets=1 CoresPerSocket=$(nproc --all) ThreadsPerCore=1 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES State=UP MaxTime=INFINITE
CONF
touch "$folder/log/jobs"
slurmctld -D > "$folder/log/slurmctld" 2>&1 &
started+=($!)
slurmd -D > "$folder/log/slurmd" 2>&1 &
started+=($!)
for _ in $(seq 60); do
    if sinfo --noheader --format=%t 2> /dev/null | grep -q idle; then break; fi
    sleep 1
done
sinfo --noheader --format=%t | grep -q idle || { tail -n 20 "$folder"/log/*; fail "Slurm did not start; its logs are above"; }
echo "== Slurm: $(sinfo --noheader --format='%N, %c processors, %t'), $(srun --version)"

runs=${RUNS:-$folder/runs}
RUNS=$runs LAUNCH="srun -n1" JOBS=2 SEEDS=${SEEDS:-0} PAIR=${PAIR:-tiny/code} \
    bash "reproduce/${TABLE:-table1}.sh" 2> >(tee "$folder/log/table" >&2)

sleep 2  # until slurmctld has written down the last job
commands=$(grep -c ': [0-9]* s$' "$folder/log/table" || true)
jobs=$(grep -c 'JobState=COMPLETED' "$folder/log/jobs" || true)
echo "== $jobs jobs of Slurm for $commands steps"
sed 's/^\(JobId=[0-9]*\) .*\( Name=[^ ]*\) .*\(JobState=[A-Z]*\).*\(StartTime=[^ ]*\) \(EndTime=[^ ]*\).*/\1\2 \3 \4 \5/' "$folder/log/jobs"
[ "$jobs" -ge "$commands" ] && [ "$commands" -gt 0 ] || fail "some steps did not go through Slurm"
