# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node ends itself when its time is over or nothing is left to do, also when no controller is left to do it. Pure.

The tags on the instance are the truth, read from the node's metadata, so that another time takes no new node. Nothing
in user data is secret: whoever is on the node can read it.
"""

from __future__ import annotations

from . import naming

NEVER = "never"
_SCRIPT = r"""#!/bin/sh
# Ends this node when the time in its tag @EXPIRES@ has passed, or its last run ended as many minutes ago as its tag
# @IDLE@ says. Without an answer what was said at the launch counts.
imds=${LLMOPS_IMDS:-http://169.254.169.254/latest}
leases=${LLMOPS_LEASES:-/run/lock/llmops}
token=$(curl -fsS -m 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$imds/api/token")
told() {
    curl -fsS -m 5 -H "X-aws-ec2-metadata-token: $token" "$imds/meta-data/tags/instance/$1" || echo "$2"
}
expires=$(told @EXPIRES@ @expires@)
idle=$(told @IDLE@ @idle@)

expired() {
    end=$(date -u -d "${expires:-never}" +%s) && [ "$(date -u +%s)" -ge "$end" ]
}
# A run holds locks on files there, which are gone with a boot; their times are when that was last seen.
unused() {
    [ "${idle:-0}" -gt 0 ] || return 1
    for lease in "$leases"/*; do
        [ -e "$lease" ] || return 1
        flock -n -s 9 9<"$lease" || touch -c "$lease"
    done
    [ -z "$(find "$leases" -type f -mmin "-$idle")" ]
}
if expired || unused; then systemctl poweroff; fi
"""
_USER_DATA = r"""#!/bin/sh
# The instance is to terminate when it is shut down; this shuts it down in time.
cat >/usr/local/sbin/llmops-expire <<'END'
@script@END
chmod 755 /usr/local/sbin/llmops-expire
cat >/etc/systemd/system/llmops-expire.service <<'END'
[Unit]
Description=End this node when its time is over, or nothing is left to do

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/llmops-expire
END
cat >/etc/systemd/system/llmops-expire.timer <<'END'
[Unit]
Description=Look whether this node is to end

[Timer]
OnBootSec=2min
OnUnitActiveSec=2min

[Install]
WantedBy=timers.target
END
systemctl daemon-reload
systemctl enable --now llmops-expire.timer
"""


def script(expires: str, idle: int) -> str:
    """expires, idle: as in the tags; empty and 0 for never."""
    given = {"@EXPIRES@": naming.EXPIRES, "@IDLE@": naming.IDLE, "@expires@": expires or NEVER, "@idle@": str(idle)}
    text = _SCRIPT
    for place, value in given.items():
        text = text.replace(place, value)
    return text


def user_data(expires: str, idle: int) -> str:
    return _USER_DATA.replace("@script@", script(expires, idle))
