#!/bin/sh
#
# nvidia.sh - stand-ins for GPUs and for NVIDIA's repository, on a host of hosts.sh; root runs it there
#
#   nvidia.sh        packages for apt, as on Debian
#   nvidia.sh rpm    packages for dnf; the host says then that it is Rocky Linux 9
#
#   /srv/recorded    sysfs of a machine with 8 H100 behind 4 NVSwitches, whose GPUs nouveau holds
#   /srv/cuda        a signed repository with packages that are called as NVIDIA's are, in two branches. Their "kernel
#                    module" is loaded at the next boot, and their nvidia-smi answers from then on; the switches are
#                    set up while the fabric manager runs
#   /srv/cuda/pin    fingerprint of its key
#
# Their names, dependencies and versions are what is tested with them; nothing of NVIDIA's is in them.

set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
kind=${1:-deb}
recorded=/srv/recorded
work=$(mktemp -d)
tree=$work/tree

apt-get -q update
case $kind in
  deb)
    apt-get -q -y install --no-install-recommends apt-utils gnupg
    place=/srv/cuda/debian$(. /etc/os-release && echo "$VERSION_ID")/x86_64
    key=3bf863cc.pub
    manager=nvidia-fabricmanager-
    modules=nvidia-kernel-open-dkms
    ;;
  rpm)
    apt-get -q -y install --no-install-recommends createrepo-c dnf dnf-plugins-core gnupg rpm
    place=/srv/cuda/rhel9/x86_64
    key=D42D0685.pub
    manager=nvidia-fabricmanager
    modules=kmod-nvidia-open-dkms
    printf '[main]\nenabled = 0\n' > /etc/dnf/plugins/local.conf # Debian's has a repository without a key
    rm /etc/os-release
    printf 'ID="rocky"\nVERSION_ID="9.5"\n' > /etc/os-release
    ;;
esac
mkdir -p "$place"

GNUPGHOME=$work/gnupg
export GNUPGHOME
mkdir -m 0700 "$GNUPGHOME"
gpg --batch --quiet --passphrase '' --quick-gen-key 'Stand-in <test@example.com>' rsa2048 sign never 2> /dev/null
gpg --batch --armor --export > "$place/$key"

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

cat > "$work/load" << END
#!/bin/sh
# What a boot does with the real module: it is loaded, and has the GPUs.
mkdir -p $recorded/module/nvidia
cp /usr/lib/stand-in/version $recorded/module/nvidia/version
for gpu in $recorded/bus/pci/devices/*; do
  [ ! -e "\$gpu/driver" ] || ln -sfn $recorded/bus/pci/drivers/nvidia "\$gpu/driver"
done
END

cat > "$work/smi" << END
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
END

# --- packages ---------------------------------------------------------------

pack() { # name version needs: what lies in $tree as a package
  mkdir -p "$tree/usr/share/stand-in"
  touch "$tree/usr/share/stand-in/$1"
  "pack_$kind" "$@"
  rm -rf "$tree"
}

pack_deb() {
  mkdir -p "$tree/DEBIAN"
  printf 'Package: %s\nVersion: %s-1\nArchitecture: amd64\nMaintainer: Test <test@example.com>\n' "$1" "$2" \
    > "$tree/DEBIAN/control"
  [ -z "$3" ] || echo "Depends: $3" >> "$tree/DEBIAN/control"
  echo 'Description: stand-in, for tests' >> "$tree/DEBIAN/control"
  dpkg-deb --root-owner-group --build "$tree" "$place/$1_$2-1_amd64.deb" > /dev/null
}

pack_rpm() { # what it needs apart from other stand-ins is not in the host's database of rpm
  (cd "$tree" && find . ! -type d | sed 's/^\.//') > "$work/list"
  printf 'Name: %s\nVersion: %s\nRelease: 1\nSummary: stand-in, for tests\nLicense: none\nAutoReqProv: no\n' "$1" "$2" \
    > "$work/spec"
  case $3 in *=*) echo "Requires: $3" | tr -d '()' >> "$work/spec" ;; esac
  printf '%%description\n%%install\nmkdir -p %%{buildroot}\ncp -a %s/. %%{buildroot}\n%%files -f %s\n' "$tree" \
    "$work/list" >> "$work/spec"
  rpmbuild --quiet -bb --target x86_64-linux --define "_rpmdir $place" --define "_topdir $work/rpm" \
    --define '_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.rpm' --define '__os_install_post %{nil}' "$work/spec"
}

unit() { # name command type
  mkdir -p "$tree/usr/lib/systemd/system"
  printf '[Unit]\nDescription=%s\n[Service]\nType=%s\nExecStart=%s\n[Install]\nWantedBy=multi-user.target\n' \
    "$1" "$3" "$2" > "$tree/usr/lib/systemd/system/$1.service"
}

for version in 580.178.04 580.200.01 595.91.07; do
  full=$version$([ "$kind" = rpm ] || echo -1)
  pack libcuda1 "$version" ''
  mkdir -p "$tree/usr/bin"
  install -m 0755 "$work/smi" "$tree/usr/bin/nvidia-smi"
  pack nvidia-driver-cuda "$version" "libcuda1 (= $full)"
  mkdir -p "$tree/usr/lib/stand-in" "$tree/etc/systemd/system/multi-user.target.wants"
  install -m 0755 "$work/load" "$tree/usr/lib/stand-in/load"
  echo "$version" > "$tree/usr/lib/stand-in/version"
  unit stand-in /usr/lib/stand-in/load oneshot
  ln -s /usr/lib/systemd/system/stand-in.service "$tree/etc/systemd/system/multi-user.target.wants/"
  pack $modules "$version" dkms
  unit nvidia-persistenced '/bin/sleep infinity' simple
  pack nvidia-persistenced "$version" ''
  unit nvidia-fabricmanager '/bin/sleep infinity' simple
  pack "$manager$([ "$kind" = rpm ] || echo "${version%%.*}")" "$version" ''
done
pack cuda-toolkit-12-8 12.8.1 ''
case $kind in
  deb) pack "linux-headers-$(uname -r)" 1 '' ;;
  rpm)
    for name in epel-release dkms gcc make python3-dnf-plugin-versionlock; do pack $name 1 ''; done
    for part in devel headers modules-extra; do pack "kernel-$part-$(uname -r)" 1 ''; done
    ;;
esac

# --- repository -------------------------------------------------------------

stream() { # name, and the versions that are in it
  printf -- '---\ndocument: modulemd\nversion: 2\ndata:\n  name: nvidia-driver\n  stream: "%s"\n  version: 1\n' "$1"
  printf '  context: abcdef12\n  arch: x86_64\n  summary: stand-in\n  description: stand-in\n  license: {module: [MIT]}\n'
  printf '  artifacts:\n    rpms:\n'
  shift
  for version in "$@"; do
    for name in nvidia-driver-cuda libcuda1 $modules nvidia-persistenced $manager; do
      printf '    - %s-0:%s-1.x86_64\n' $name "$version"
    done
  done
  printf '...\n'
}

cd "$place"
case $kind in
  deb)
    apt-ftparchive packages . > Packages
    apt-ftparchive -o APT::FTPArchive::Release::Origin=NVIDIA -o 'APT::FTPArchive::Release::Label=NVIDIA CUDA' \
      release . > Release
    gpg --batch --yes --quiet --clearsign --digest-algo SHA512 -o InRelease Release
    ;;
  rpm)
    rpmsign --define '_gpg_name Stand-in' --define "__gpg $(command -v gpg)" --addsign ./*.rpm > /dev/null
    createrepo_c --quiet .
    { stream 580-open 580.178.04 580.200.01 && stream 595-open 595.91.07; } > "$work/modules.yaml"
    modifyrepo_c --mdtype=modules "$work/modules.yaml" repodata > /dev/null
    ;;
esac
gpg --batch --with-colons --list-keys | sed -n 's/^fpr:*\([0-9A-F]*\):$/\1/p' | head -n 1 > /srv/cuda/pin
chmod -R a+rX /srv/cuda
rm -rf "$work"
