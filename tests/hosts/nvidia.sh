#!/bin/sh
#
# nvidia.sh - stand-ins for GPUs and for NVIDIA's repository, on a host of hosts.sh; root runs it there
#
#   /srv/recorded    sysfs of a machine with 8 H100 behind 4 NVSwitches, whose GPUs nouveau holds
#   /srv/cuda        a signed repository with packages that are called as NVIDIA's for Debian are, in two branches.
#                    Their "kernel module" is loaded at the next boot, and their nvidia-smi answers from then on;
#                    the switches are set up while the fabric manager runs
#   /srv/cuda/pin    fingerprint of its key
#
# Their names, dependencies and versions are what is tested with them; nothing of NVIDIA's is in them.

set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
recorded=/srv/recorded
place=/srv/cuda/debian$(. /etc/os-release && echo "$VERSION_ID")/x86_64
work=$(mktemp -d)

apt-get -q update
apt-get -q -y install --no-install-recommends apt-utils gnupg

# --- GPUs -------------------------------------------------------------------

device() { # address device class driver
  mkdir -p "$recorded/bus/pci/devices/$1" "$recorded/bus/pci/drivers/nouveau" "$recorded/bus/pci/drivers/nvidia"
  echo 0x10de > "$recorded/bus/pci/devices/$1/vendor"
  echo "0x$2" > "$recorded/bus/pci/devices/$1/device"
  echo "0x$3" > "$recorded/bus/pci/devices/$1/class"
  [ -z "$4" ] || ln -sfn "$recorded/bus/pci/drivers/$4" "$recorded/bus/pci/devices/$1/driver"
}

for number in 0 1 2 3 4 5 6 7; do device "0000:1$number:00.0" 2330 030200 nouveau; done
for number in 8 9 a b; do device "0000:1$number:00.0" 22a3 068000 ''; done
mkdir -p "$recorded/class/dmi/id"
echo p5.48xlarge > "$recorded/class/dmi/id/product_name"

cat > "$work/load" << E
#!/bin/sh
# What a boot does with the real module: it is loaded, and has the GPUs.
mkdir -p $recorded/module/nvidia
dpkg-query -W -f '\${Version}' nvidia-driver-cuda | sed 's/-.*//' > $recorded/module/nvidia/version
for gpu in $recorded/bus/pci/devices/*; do
  [ ! -e "\$gpu/driver" ] || ln -sfn $recorded/bus/pci/drivers/nvidia "\$gpu/driver"
done
E

cat > "$work/smi" << E
#!/bin/sh
[ -e $recorded/module/nvidia/version ] || {
  echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
  exit 9
}
[ "\$1" = -q ] || exit 0
fabric='In Progress'
! systemctl -q is-active nvidia-fabricmanager || fabric=Completed
echo "<nvidia_smi_log><driver_version>\$(cat $recorded/module/nvidia/version)</driver_version>"
for number in 0 1 2 3 4 5 6 7; do
  echo "<gpu id=\"00000000:1\$number:00.0\"><product_name>NVIDIA H100 80GB HBM3</product_name>"
  echo "<uuid>GPU-0000000\$number-0000-4000-8000-000000000000</uuid>"
  echo "<fb_memory_usage><total>81559 MiB</total><free>81000 MiB</free></fb_memory_usage>"
  echo "<fabric><state>\$fabric</state></fabric></gpu>"
done
echo "</nvidia_smi_log>"
E

# --- packages ---------------------------------------------------------------

mkdir -p "$place"

deb() { # name version depends; its files lie in $work/files
  mkdir -p "$work/files/DEBIAN"
  printf 'Package: %s\nVersion: %s\nArchitecture: amd64\nMaintainer: Test <test@example.com>\n' "$1" "$2" \
    > "$work/files/DEBIAN/control"
  [ -z "$3" ] || echo "Depends: $3" >> "$work/files/DEBIAN/control"
  echo 'Description: stand-in, for tests' >> "$work/files/DEBIAN/control"
  dpkg-deb --root-owner-group --build "$work/files" "$place/$1_$2_amd64.deb" > /dev/null
  rm -rf "$work/files"
}

unit() { # name command type
  mkdir -p "$work/files/lib/systemd/system"
  printf '[Unit]\nDescription=%s\n[Service]\nType=%s\nExecStart=%s\n[Install]\nWantedBy=multi-user.target\n' \
    "$1" "$3" "$2" > "$work/files/lib/systemd/system/$1.service"
}

for version in 580.178.04-1 580.200.01-1 595.91.07-1; do
  deb libcuda1 "$version" ''
  mkdir -p "$work/files/usr/bin"
  install -m 0755 "$work/smi" "$work/files/usr/bin/nvidia-smi"
  deb nvidia-driver-cuda "$version" "libcuda1 (= $version), nvidia-kernel-open-dkms (= $version)"
  mkdir -p "$work/files/usr/lib/stand-in" "$work/files/etc/systemd/system/multi-user.target.wants"
  install -m 0755 "$work/load" "$work/files/usr/lib/stand-in/load"
  unit stand-in /usr/lib/stand-in/load oneshot
  ln -s /lib/systemd/system/stand-in.service "$work/files/etc/systemd/system/multi-user.target.wants/"
  deb nvidia-kernel-open-dkms "$version" dkms
  unit nvidia-persistenced '/bin/sleep infinity' simple
  deb nvidia-persistenced "$version" ''
  unit nvidia-fabricmanager '/bin/sleep infinity' simple
  deb "nvidia-fabricmanager-${version%%.*}" "$version" ''
done
deb "linux-headers-$(uname -r)" 1 ''
deb cuda-toolkit-12-8 12.8.1-1 ''

# --- repository -------------------------------------------------------------

cd "$place"
apt-ftparchive packages . > Packages
apt-ftparchive -o APT::FTPArchive::Release::Origin=NVIDIA -o 'APT::FTPArchive::Release::Label=NVIDIA CUDA' release . \
  > Release
GNUPGHOME=$work/gnupg
export GNUPGHOME
mkdir -m 0700 "$GNUPGHOME"
gpg --batch --quiet --passphrase '' --quick-gen-key 'Stand-in <test@example.com>' rsa2048 sign never 2> /dev/null
gpg --batch --yes --quiet --clearsign --digest-algo SHA512 -o InRelease Release
gpg --batch --armor --export > 3bf863cc.pub
gpg --batch --with-colons --list-keys | sed -n 's/^fpr:*\([0-9A-F]*\):$/\1/p' | head -n 1 > /srv/cuda/pin
chmod -R a+rX /srv/cuda
rm -rf "$work"
