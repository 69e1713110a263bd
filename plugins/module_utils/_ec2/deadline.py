# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node ends itself when its time is over, also when no controller is left to do it. Pure.

The tag on the instance is the truth, read from the node's metadata, so that a longer time takes no new node. Nothing in
user data is secret: whoever is on the node can read it.
"""

from __future__ import annotations

from . import naming

_SCRIPT = r"""#!/bin/sh
# Ends this node when the time in its tag @tag@ has passed. Without an answer the time of the launch counts.
imds=${LLMOPS_IMDS:-http://169.254.169.254/latest}
token=$(curl -fsS -m 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$imds/api/token") &&
    expires=$(curl -fsS -m 5 -H "X-aws-ec2-metadata-token: $token" "$imds/meta-data/tags/instance/@tag@") ||
    expires=@expires@
end=$(date -u -d "$expires" +%s) || exit 1
[ "$(date -u +%s)" -lt "$end" ] || systemctl poweroff
"""
_USER_DATA = r"""#!/bin/sh
# The instance is to terminate when it is shut down; this shuts it down in time.
cat >/usr/local/sbin/llmops-expire <<'END'
@script@END
chmod 755 /usr/local/sbin/llmops-expire
cat >/etc/systemd/system/llmops-expire.service <<'END'
[Unit]
Description=End this node when its time is over

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/llmops-expire
END
cat >/etc/systemd/system/llmops-expire.timer <<'END'
[Unit]
Description=Look whether the time of this node is over

[Timer]
OnBootSec=2min
OnUnitActiveSec=2min

[Install]
WantedBy=timers.target
END
systemctl daemon-reload
systemctl enable --now llmops-expire.timer
"""


def script(expires: str) -> str:
    return _SCRIPT.replace("@tag@", naming.EXPIRES).replace("@expires@", expires)


def user_data(expires: str) -> str:
    return _USER_DATA.replace("@script@", script(expires)) if expires else ""
