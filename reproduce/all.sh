#!/usr/bin/env bash
# Every table and both figures, one after another; takes the flags of the single scripts. What is there is not made again.
#
#   bash reproduce/all.sh --dry-run
#   PAIR=tiny bash reproduce/all.sh
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
source "$here/../requirements/environment.sh"
help_if_asked "$@"
for name in table1 table2 table3 table4 figure1 table6 figure4 table8; do  # figure1 prints Table 5 too, figure4 Table 7
    echo
    echo "# $name"
    bash "$here/$name.sh" "$@"
done
