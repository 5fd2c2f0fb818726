#!/usr/bin/env bash
# A whole Slurm on this one machine, for tests: munged, slurmctld and slurmd on the loopback interface.
#
#   slurm_here.sh start DIR [CPUS]   start it as root; everything it needs lies in DIR; prints SLURM_CONF
#   slurm_here.sh stop DIR           end what `start` started
#
# Needs Debian's packages: apt-get install slurm-wlm munge (slurm 22.05). No systemd, no cgroups, no
# accounting database; CPUS may be more than the machine has.
set -euo pipefail
command=${1:?start or stop}
dir=$(realpath -m "${2:?a folder}")
cpus=${3:-4}
export SLURM_CONF=$dir/slurm.conf

stop() {
  for name in slurmd slurmctld munged; do
    if [ -f "$dir/$name.pid" ]; then kill "$(cat "$dir/$name.pid")" 2>/dev/null || true; fi
  done
}

if [ "$command" = stop ]; then
  scancel --state=PENDING,RUNNING --user=root 2>/dev/null || true
  for _ in $(seq 60); do # a slurmstepd would outlive its slurmd
    [ -n "$(timeout 20 squeue --noheader 2>/dev/null)" ] || break
    sleep 0.5
  done
  stop
  exit 0
fi

for program in munged slurmctld slurmd sbatch; do
  command -v $program >/dev/null || { echo "$program is missing: apt-get install slurm-wlm munge" >&2; exit 2; }
done
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

mkdir -p "$dir"/{state,spool}
chmod 755 "$dir"
head -c 128 /dev/urandom >"$dir/munge.key"
chmod 400 "$dir/munge.key"
munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
  --log-file="$dir/munged.log" --seed-file="$dir/munged.seed" 2>"$dir/munged.start"
host=$(hostname -s)
cat >"$SLURM_CONF" <<CONF
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0,defer_batch
SchedulerTimeSlice=5
JobRequeue=1
KillWait=10
OverTimeLimit=0
MinJobAge=300
InactiveLimit=0
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=2000 State=UNKNOWN
PartitionName=short Nodes=ALL Default=YES MaxTime=60 OverSubscribe=NO State=UP
CONF
slurmctld -c >"$dir/slurmctld.start" 2>&1
slurmd >"$dir/slurmd.start" 2>&1
for _ in $(seq 100); do
  if [ "$(sinfo --noheader --format=%t 2>/dev/null)" = idle ]; then
    echo "$SLURM_CONF"
    exit 0
  fi
  sleep 0.2
done
echo "Slurm did not come up; its words are in $dir" >&2
tail -n 5 "$dir"/*.log "$dir"/*.start >&2
stop
exit 1
