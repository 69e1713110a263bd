#!/usr/bin/env bash
#
# hosts.sh - hosts as a cloud provider gives them, on this machine, for tests
#
# Each is a rootful podman container that boots systemd, has its own address and a disk of its own at /data, and runs
# sshd with key login for `admin`, who may use sudo. The image is made here from the distribution's packages. At /shared
# all have one folder of this machine, which stands for storage of a network: it shows at once what another host wrote.
#
#   hosts.sh setup             install what is needed, with apt-get
#   hosts.sh check             0: hosts can be started here; else says what lacks
#   hosts.sh build             build the image (kept; a second call is quick)
#   hosts.sh up [N]            start N hosts (1 by default), wait for sshd, write and print the inventory
#   hosts.sh inventory         print the inventory again
#   hosts.sh ssh HOST [CMD...] log in, or run a command
#   hosts.sh kill HOST...      cut the power; they stay off until `start`
#   hosts.sh start HOST...     power on again: same address, disk and keys
#   hosts.sh down              remove hosts, their disks, network and keys
#   hosts.sh purge             the same, and the images too
#
# From the environment:
#   HOSTS_STATE   keys, inventory, disks                              (/var/tmp/llmops-hosts)
#   HOSTS_PREFIX  hosts are PREFIX1, PREFIX2, ...                     (node)
#   HOSTS_SUBNET  an IPv4 /24                                         (10.213.7.0/24)
#   HOSTS_SUITE   Debian suite of the base image, for mmdebstrap      (bookworm)
#   HOSTS_BASE    a base image to use, in place of one made here      (none)

set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
STATE=${HOSTS_STATE:-/var/tmp/llmops-hosts}
PREFIX=${HOSTS_PREFIX:-node}
SUBNET=${HOSTS_SUBNET:-10.213.7.0/24}
SUITE=${HOSTS_SUITE:-bookworm}
LOGIN="admin"
IMAGE=localhost/llmops-test-host:$SUITE-$(cat "$HERE"/{Containerfile,first-process} | sha256sum | cut -c 1-8)
DEBIAN=localhost/debian:$SUITE
NETWORK=$PREFIX-net
LABEL=llmops-test-hosts=$PREFIX
NET24=${SUBNET%.*}
FIRST=20 # PREFIX1 is .20, which a cloud gives first in the /28 that it is in; .1 is this machine

die() {
  printf 'hosts.sh: %s\n' "$*" >&2
  exit 1
}

# --- podman -----------------------------------------------------------------

PACKAGES=(podman netavark iptables iproute2 runc mmdebstrap openssh-client)

cmd_setup() {
  local log=$STATE/apt.log
  [[ $(id -u) == 0 ]] || die "only root can install packages"
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${PACKAGES[@]}"; } \
    > "$log" 2>&1 || die "apt-get: $(tail -n 3 "$log")"
}

cmd_check() {
  local missing=() tool
  [[ $(id -u) == 0 ]] || die "only root can give hosts an address of their own"
  for tool in podman iptables ip ssh ssh-keygen; do
    command -v "$tool" > /dev/null || missing+=("$tool")
  done
  if hybrid_cgroups && ! command -v runc > /dev/null; then missing+=(runc); fi
  if [[ -z ${HOSTS_BASE:-} ]] && ! command -v mmdebstrap > /dev/null; then missing+=("mmdebstrap (or HOSTS_BASE)"); fi
  ((${#missing[@]} == 0)) ||
    die "not installed: ${missing[*]}; on Debian: hosts.sh setup, or apt-get install ${PACKAGES[*]}"
  use_podman
  podman info > /dev/null 2> "$STATE/podman.log" || die "podman does not work: $(tail -n 1 "$STATE/podman.log")"
}

hybrid_cgroups() {
  local controllers=/sys/fs/cgroup/unified/cgroup.controllers
  [[ -r $controllers && -n $(< "$controllers") ]]
}

cannot_raise_limits() {
  local bounding
  bounding=$(awk '/^CapBnd/ { print $2 }' /proc/self/status)
  ! (((0x$bounding >> 24) & 1)) # CAP_SYS_RESOURCE
}

# Small virtual machines and CI sandboxes: without CAP_SYS_RESOURCE podman's own limits are refused; crun refuses a
# cgroup v2 mount beside v1 that has a controller; where PID 1 is not systemd there is no cgroup manager to ask.
use_podman() {
  local containers=() engine=()
  if cannot_raise_limits; then containers+=('default_ulimits = []'); fi
  if hybrid_cgroups; then engine+=('runtime = "runc"'); fi
  if [[ ! -d /run/systemd/system ]]; then engine+=('cgroup_manager = "cgroupfs"' 'events_logger = "file"'); fi
  ((${#containers[@]} + ${#engine[@]})) || return 0
  export CONTAINERS_CONF=$STATE/containers.conf
  printf '%s\n' '[containers]' "${containers[@]}" '[engine]' "${engine[@]}" > "$CONTAINERS_CONF.$$"
  mv "$CONTAINERS_CONF.$$" "$CONTAINERS_CONF"
}

# --- image ------------------------------------------------------------------

cmd_build() {
  local base=${HOSTS_BASE:-$DEBIAN} context=$STATE/image
  cmd_check
  if [[ $base == "$DEBIAN" ]] && ! podman image exists "$base"; then
    mmdebstrap --quiet --mode=root --variant=minbase --include=ca-certificates "$SUITE" - |
      podman import --quiet - "$base" > /dev/null
  fi
  rm -rf "$context"
  mkdir -p "$context/ca"
  cp "$HERE/Containerfile" "$HERE/first-process" "$context/"
  find /usr/local/share/ca-certificates -name '*.crt' -exec cp {} "$context/ca/" \; 2> /dev/null || true
  podman build --quiet --pull=missing --build-arg "BASE=$base" --build-arg "LOGIN=$LOGIN" --tag "$IMAGE" "$context" \
    > /dev/null 2> "$STATE/build.log" || die "the image cannot be built: $(tail -n 5 "$STATE/build.log")"
  rm -rf "$context"
}

# --- hosts ------------------------------------------------------------------

names() { podman ps --all --filter "label=$LABEL" --format '{{.Names}}' | sort -V; }

address_of() {
  [[ $1 =~ ^"$PREFIX"([0-9]+)$ ]] || die "no such host: $1"
  printf '%s.%d\n' "$NET24" $((FIRST - 1 + BASH_REMATCH[1]))
}

# The same after a restart: with a new one, neighbours would go on sending to the old for half a minute.
hardware_address_of() {
  local a b c d
  IFS=. read -r a b c d <<< "$(address_of "$1")"
  printf '02:00:%02x:%02x:%02x:%02x\n' "$a" "$b" "$c" "$d"
}

ssh_options() {
  printf '%s\n' -i "$STATE/id_ed25519" -o BatchMode=yes -o IdentitiesOnly=yes -o LogLevel=ERROR \
    -o StrictHostKeyChecking=accept-new -o "UserKnownHostsFile=$STATE/known_hosts"
}

wait_for_ssh() {
  local host options deadline=$((SECONDS + 60))
  mapfile -t options < <(ssh_options)
  for host in "$@"; do
    until ssh "${options[@]}" -o ConnectTimeout=2 "$LOGIN@$(address_of "$host")" true 2> /dev/null; do
      ((SECONDS < deadline)) || die "$host does not answer ssh: $(podman logs --tail 3 "$host" 2>&1)"
      sleep 0.1
    done
  done
}

start_one() {
  local host=$1 count=$2 flags=() peer
  for ((peer = 1; peer <= count; peer++)); do
    flags+=(--add-host "$PREFIX$peer:$(address_of "$PREFIX$peer")")
  done
  mkdir -p "$STATE/disks/$host" "$STATE/shared"
  podman run --quiet --detach --name "$host" --hostname "$host" --label "$LABEL" \
    --network "$NETWORK" --ip "$(address_of "$host")" --mac-address "$(hardware_address_of "$host")" \
    --systemd=always --cgroupns=private --restart=always --pids-limit=-1 --shm-size 1g \
    --cap-add=SYS_ADMIN,NET_ADMIN,NET_RAW,SYS_BOOT,SYS_PTRACE,AUDIT_WRITE \
    --volume "$STATE/id_ed25519.pub:/etc/first-boot/authorized_keys:ro" --volume "$STATE/disks/$host:/data" \
    --volume "$STATE/shared:/shared" \
    "${flags[@]}" "$IMAGE" > /dev/null 2> "$STATE/$host.log" || die "podman run $host: $(< "$STATE/$host.log")"
  rm -f "$STATE/$host.log"
}

cmd_up() {
  local count=${1:-1} i started=()
  if [[ ! $count =~ ^[0-9]+$ ]] || ((count < 1 || count > 200)); then die "up takes a number from 1 to 200"; fi
  cmd_check
  podman image exists "$IMAGE" || cmd_build
  [[ -f $STATE/id_ed25519 ]] || ssh-keygen -q -t ed25519 -N '' -C test-hosts -f "$STATE/id_ed25519"
  podman network exists "$NETWORK" ||
    podman network create --subnet "$SUBNET" --gateway "$NET24.1" --disable-dns "$NETWORK" > /dev/null
  # With the last host off, its network is gone; what is still sent there must not leave by the default route.
  ip route replace unreachable "$SUBNET" metric 4294967295
  for ((i = 1; i <= count; i++)); do
    podman container exists "$PREFIX$i" && continue
    start_one "$PREFIX$i" "$count"
    started+=("$PREFIX$i")
  done
  ((${#started[@]} == 0)) || wait_for_ssh "${started[@]}"
  cmd_inventory | tee "$STATE/inventory.yml"
}

cmd_inventory() {
  local host
  use_podman
  printf 'trainers:\n  vars:\n    ansible_user: %s\n' "$LOGIN"
  printf '    ansible_ssh_private_key_file: %s\n' "$STATE/id_ed25519"
  printf '    ansible_ssh_common_args: -o IdentitiesOnly=yes -o StrictHostKeyChecking=accept-new'
  printf ' -o UserKnownHostsFile=%s\n' "$STATE/known_hosts"
  printf '  hosts:\n'
  for host in $(names); do printf '    %s:\n      ansible_host: %s\n' "$host" "$(address_of "$host")"; done
}

cmd_ssh() {
  local host=${1:?hosts.sh ssh HOST [CMD...]} options
  shift
  mapfile -t options < <(ssh_options)
  exec ssh "${options[@]}" "$LOGIN@$(address_of "$host")" "$@"
}

cmd_kill() {
  use_podman
  podman kill --signal KILL "$@" > /dev/null
  podman wait "$@" > /dev/null
}

cmd_start() {
  use_podman
  podman start "$@" > /dev/null
  wait_for_ssh "$@"
}

# --- the end ----------------------------------------------------------------

cmd_down() {
  local hosts
  use_podman
  mapfile -t hosts < <(names)
  ((${#hosts[@]} == 0)) || podman rm --force --time 0 "${hosts[@]}" > /dev/null
  if podman network exists "$NETWORK"; then podman network rm "$NETWORK" > /dev/null; fi
  ip route del unreachable "$SUBNET" metric 4294967295 2> /dev/null || true
  rm -rf "$STATE"/{disks,shared,image,id_ed25519,id_ed25519.pub,known_hosts,known_hosts.old,inventory.yml}
}

cmd_purge() {
  cmd_down
  podman images --quiet --filter reference=localhost/llmops-test-host | xargs --no-run-if-empty podman image rm --force \
    > /dev/null 2>&1 || true
  podman image rm --force "$DEBIAN" > /dev/null 2>&1 || true
  rm -f "$STATE"/{containers.conf,build.log,podman.log,apt.log}
  rmdir "$STATE" 2> /dev/null || true
}

command=${1:-help}
shift || true
case $command in
  setup | check | build | up | inventory | ssh | kill | start | down | purge)
    [[ $STATE != *[[:space:]]* ]] || die "HOSTS_STATE may have no blanks: $STATE"
    (umask 077 && mkdir -p "$STATE")
    [[ -O $STATE ]] || die "$STATE belongs to somebody else"
    "cmd_$command" "$@"
    ;;
  *)
    sed -n '3,/^$/ { s/^# \{0,1\}//; p }' "$0"
    [[ $command == help ]] || exit 2
    ;;
esac
