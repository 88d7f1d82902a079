#!/usr/bin/env bash
# Learning rates of the small pair: how far each takes a model (rho), and what compression leaves of it there.
#
#   bash reproduce/rates.sh                            code at six peak rates, with all else as it is
#   MODELS="code math" RATES="1e-4 1e-3" RATIOS=32 bash reproduce/rates.sh
#
# Fine-tunes what is missing (bash reproduce/small_pair.sh code_rate1e-3); minutes each on a CPU, of math 20.
source "$(dirname "${BASH_SOURCE[0]}")/plan.sh"
pairs=()
for skill in ${MODELS:-code}; do
    for rate in ${RATES:-5e-5 1e-4 2e-4 3e-4 5e-4 1e-3}; do
        pair=smollm2/${skill}_rate$rate  # its settings are those of the skill
        pairs+=("$pair")
        case " $* " in *" -h "* | *" --help "*) continue ;; esac
        mkdir -p "configs/$pair"
        sed "s/^\(ftm_dir\|make_models\): .*/&_rate$rate/; s|^name: .*|&, rate $rate|" "configs/smollm2/$skill/pair.yaml" > "configs/$pair/pair.yaml"
    done
done
start rates "${pairs[*]}" "$@"
# shellcheck disable=SC2086  # a word for each model
dry_run || bash reproduce/small_pair.sh ${PAIRS//smollm2\//}
for pair in $PAIRS; do
    skill=${pair#smollm2/}
    echo "finetuned $pair on tiny_${skill%_rate*}"
    for ratio in ${RATIOS:-32 128}; do
        echo "base $pair $ratio"
        echo "finetuned $pair $ratio"
        for row in dare lowrank impart; do
            echo "sparse $row $pair $ratio"
        done
        echo "quantized lowrank_sparse_auto $pair $ratio"
    done
done | plan --title "Peak rates of fine-tuning" --first
if dry_run; then exit; fi
for pair in $PAIRS; do
    sed -n "s|.*\"rho\": |$pair: rho |p" "assets/small/models/${pair#smollm2/}/training.json"
done
