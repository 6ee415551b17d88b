#!/usr/bin/env bash
# The action's work: a review, its summary, and the comment. Ends with the review's exit code (see `layerdrift --help`).
set -euo pipefail

out="$RUNNER_TEMP/layerdrift"
rm -rf "$out"  # what an earlier review of this job left is none of this one's
mkdir -p "$out"

options=()
add() { if [[ -n "$2" ]]; then options+=("$1" "$2"); fi; }
add --base "${INPUT_BASE:-}"
add --tuned "${INPUT_TUNED:-}"
add --dataset "${INPUT_DATASET:-}"
add --request "${INPUT_REQUEST:-}"
add --timeout "${INPUT_TIMEOUT:-}"
judged=()
if [[ -n "${INPUT_POLICY:-}" ]]; then judged+=(--policy "$INPUT_POLICY"); fi
if [[ -n "${INPUT_BASELINE:-}" ]]; then judged+=(--baseline "$INPUT_BASELINE"); fi
more=()
if ! xargs -r printf '%s\0' <<<"${INPUT_ARGUMENTS:-}" >"$RUNNER_TEMP/layerdrift-arguments"; then
  echo "::error title=layerdrift::the input arguments cannot be read as a shell would: is a quote left open?"
  exit 2
fi
while IFS= read -r -d '' argument; do more+=("$argument"); done <"$RUNNER_TEMP/layerdrift-arguments"

code=0
layerdrift review ${options[@]+"${options[@]}"} ${judged[@]+"${judged[@]}"} ${more[@]+"${more[@]}"} \
  --junit "$out/junit.xml" --markdown "$out/summary.md" --html "$out/report.html" --report "$out/report.json" \
  --png "$out/drift.png" --verdict "$out/verdict.json" || code=$?

if [[ ! -f "$out/verdict.json" ]]; then
  echo "::error title=layerdrift::the review did not come to a verdict (exit code $code); see the log"
  exit "$code"
fi

read -r analysis decision < <(
  python3 -c 'import json, sys; v = json.load(open(sys.argv[1])); print(v["analysis_id"], v["decision"])' "$out/verdict.json"
)
printf 'analysis-id=%s\ndecision=%s\n' "$analysis" "$decision" >>"$GITHUB_OUTPUT"
cat "$out/summary.md" >>"$GITHUB_STEP_SUMMARY"

if [[ "${INPUT_COMMENT:-true}" == true && "${GITHUB_EVENT_NAME:-}" == pull_request* ]]; then
  layerdrift publish github "$analysis" --verdict "$out/verdict.json" --comment-name "${INPUT_COMMENT_NAME:-review}" ||
    echo "::warning title=layerdrift::the comment could not be written; the verdict stands in the summary"
fi
exit "$code"
