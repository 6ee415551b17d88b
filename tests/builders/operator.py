"""What the operator of a guarded stack has put into its environment."""

from __future__ import annotations

import base64

ADMIN = "the operator's own key, of this test"
WEBHOOK_SECRETS = '{"ci": "whsec_' + base64.b64encode(b"a secret of twenty-four by").decode() + '"}'
