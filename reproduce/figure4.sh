#!/usr/bin/env bash
# Figure 4: score by quantized ratio of BitDelta, DARE-Qt, Delta-CoMe and ImPart-Qt (the numbers of Table 7).
# Writes figure4.png and figure4.svg beside the tables; the paper's own points are drawn too where the pair is the paper's.
#
#   bash reproduce/figure4.sh
#   PAIR=tiny bash reproduce/figure4.sh
set -euo pipefail
FIGURE=figure4 exec bash "$(dirname "${BASH_SOURCE[0]}")/table7.sh" "$@"
