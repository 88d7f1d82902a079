#!/usr/bin/env bash
# Figure 1: score by compression ratio of DARE, LowRank and ImPart (the numbers of Table 5).
# Writes figure1.png and figure1.svg beside the tables; the paper's own points are drawn too where the pair is the paper's.
#
#   bash reproduce/figure1.sh
#   PAIR=tiny bash reproduce/figure1.sh
set -euo pipefail
FIGURE=figure1 exec bash "$(dirname "${BASH_SOURCE[0]}")/table5.sh" "$@"
