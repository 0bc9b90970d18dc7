# shellcheck shell=bash disable=SC2034
# Sourced by the launchers; written for bash 3.2 and later (macOS has 3.2).
#
# A launcher sets USAGE and OPTIONS, calls `parse "$@"`, and does its work through `run` and `ask`,
# which print the command instead of running it under --dry-run.
#
# OPTIONS is a table, one option per line: name|check|default|help. An option is given as
# --name=value or as the environment variable MMRL_NAME; its value lands in OPT_NAME.

readonly PREEMPTED=75 # EX_TEMPFAIL: training saved itself and wants to be started again

DRY_RUN=false
TRAIN_ARGUMENTS=() # what stands after --, for mmrl.main

fail() { # MESSAGE: ends with one line, as the Python commands do
  printf 'error: %s\n' "$1" >&2
  exit 2
}

say() {
  printf '%s\n' "$1" >&2
}

quote() { # WORD...: one line that a shell reads back as the same words
  local word separator=''
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*)
        word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'"
        ;;
    esac
    printf '%s%s' "$separator" "$word"
    separator=' '
  done
}

show() {
  quote "$@"
  printf '\n'
}

run() { # COMMAND...
  if "$DRY_RUN"; then
    show "$@"
  else
    "$@"
  fi
}

ask() { # ANSWER COMMAND...: what the command prints; under --dry-run ANSWER, the command on stderr
  local answer=$1
  shift
  if "$DRY_RUN"; then
    show "$@" >&3
    printf '%s\n' "$answer"
  else
    "$@"
  fi
}

home() { # SCRIPT: the repository, as short as the script was called
  local folder
  folder=$(dirname "$1")
  case $folder in
    . | */. | .. | */..) printf '%s/..' "$folder" ;;
    *) dirname "$folder" ;;
  esac
}

variable() { # PREFIX NAME: PREFIX_UPPER_CASE_NAME
  printf '%s_%s' "$1" "$2" | tr 'a-z-' 'A-Z_'
}

help_text() {
  printf '%s\n\nOptions, each also as an environment variable (--dry-run as MMRL_DRY_RUN):\n' "$USAGE"
  local name check default text
  while IFS='|' read -r _ name check default text; do
    printf '  --%-22s %s%s\n' "$name=..." "$text" "${default:+ [$default]}"
  done <<<"$TABLE"
  printf '  --%-22s %s\n' dry-run 'print the commands, one per line, and run nothing' \
    help 'show this text'
}

option_names() {
  local name rest
  while IFS='|' read -r _ name rest; do
    printf -- '--%s ' "$name"
  done <<<"$TABLE"
}

parse_command() { # COMMANDS ARGUMENT...: the first argument is one of them; sets COMMAND
  local commands=$1
  shift
  COMMAND=${1:-}
  case " $commands " in
    *" $COMMAND "*) [ -z "$COMMAND" ] || shift ;;
    *) COMMAND='' ;;
  esac
  if [ -z "$COMMAND" ]; then
    case ${1:-} in
      --help | -h) ;;
      '' | --*) fail "missing command; the commands: $commands" ;;
      *) fail "unknown command $(quote "$1"); the commands: $commands" ;;
    esac
  fi
  parse "$@"
}

parse() { # ARGUMENT...: sets OPT_*, DRY_RUN and TRAIN_ARGUMENTS; ends the script on a wrong one
  local argument key name check default given value
  case ${MMRL_DRY_RUN:-false} in
    true | false) DRY_RUN=${MMRL_DRY_RUN:-false} ;;
    *) fail "MMRL_DRY_RUN=$MMRL_DRY_RUN: expected true or false" ;;
  esac
  # With the name in upper case in front, once for all options: KEY|name|check|default|help.
  TABLE=$(awk -F '|' 'NF { key = toupper($1); gsub("-", "_", key); print key "|" $0 }' <<<"$OPTIONS")
  while IFS='|' read -r key name check default _; do
    given=MMRL_$key
    printf -v "OPT_$key" '%s' "${!given:-$default}"
  done <<<"$TABLE"
  while [ $# -gt 0 ]; do
    argument=$1
    shift
    case $argument in
      --help | -h)
        help_text
        exit 0
        ;;
      --)
        TRAIN_ARGUMENTS=("$@")
        break
        ;;
      --dry-run) DRY_RUN=true ;;
      --*=*) assign "${argument%%=*}" "${argument#*=}" ;;
      --*) assign "$argument" '' ;;
      *) fail "unexpected argument $(quote "$argument"); options are written --name=value" ;;
    esac
  done
  while IFS='|' read -r key name check _; do
    value=OPT_$key
    [ -z "${!value}" ] || validate "$name" "$check" "${!value}"
  done <<<"$TABLE"
  refuse_secrets
  # For `ask`, whose own output is captured. Only here: a background process that inherits an open
  # copy of an ssh connection's output keeps that connection from ending.
  ! "$DRY_RUN" || exec 3>&1
}

assign() { # --NAME VALUE; --some_name is --some-name, as mmrl.main writes its flags
  local given=${1#--} key name check
  given=${given//_/-}
  while IFS='|' read -r key name check _; do
    [ "$name" = "$given" ] || continue
    if [ -z "$2" ]; then
      [ "$check" = boolean ] || fail "$1 has no value; write $1=..."
      set -- "$1" true
    fi
    printf -v "OPT_$key" '%s' "$2"
    return
  done <<<"$TABLE"
  fail "unknown option $(quote "$1"); the options: $(option_names)--dry-run --help"
}

validate() { # NAME CHECK VALUE
  local pattern expected
  case $2 in
    boolean) pattern='(true|false)' expected='true or false' ;;
    count) pattern='[1-9][0-9]{0,6}' expected='a whole number from 1' ;;
    whole) pattern='(0|[1-9][0-9]{0,6})' expected='a whole number from 0' ;;
    port) pattern='[1-9][0-9]{0,4}' expected='a port from 1 to 65535' ;;
    name)
      pattern='[a-z]([a-z0-9-]{0,38}[a-z0-9])?'
      expected='at most 40 lower-case letters, digits and hyphens, a letter first'
      ;;
    word) pattern='[A-Za-z0-9][A-Za-z0-9_.:/@%+-]*' expected='one word without spaces' ;;
    words) pattern='[A-Za-z0-9/][A-Za-z0-9_.:/@%+,-]*' expected='words separated by commas' ;;
    path) pattern='[A-Za-z0-9_./~][A-Za-z0-9_./:@%+=~ -]*' expected='a path' ;;
    config) pattern='[A-Za-z0-9_./-]+\.py(:.+)?' expected='FILE.py or FILE.py:VARIANT' ;;
    bucket)
      pattern='gs://[a-z0-9][a-z0-9._-]+/[A-Za-z0-9_./=-]+'
      expected='gs://BUCKET/FOLDER, which outlives the machines'
      ;;
    topology) pattern='[1-9][0-9]*x[1-9][0-9]*(x[1-9][0-9]*)?' expected='for example 4x4 or 4x4x4' ;;
    time) pattern='([0-9]+-)?[0-9]{1,2}(:[0-9]{2}){0,2}' expected='[DAYS-]HOURS:MINUTES:SECONDS' ;;
    secrets)
      pattern='[A-Za-z_][A-Za-z0-9_]*=[A-Za-z0-9_-]+(,[A-Za-z_][A-Za-z0-9_]*=[A-Za-z0-9_-]+)*'
      expected='VARIABLE=SECRET_ID,..., ids of the secret manager and no values'
      ;;
    *) # choices
      pattern="(${2//\//|})" expected="one of ${2//\//, }"
      ;;
  esac
  [[ $3 != *$'\n'* && $3 =~ ^${pattern}$ ]] || fail "--$1=$(given "$1" "$3"): expected $expected"
  if [ "$2" = port ] && [ "$3" -gt 65535 ]; then
    fail "--$1=$3: expected $expected"
  fi
}

given() { # NAME VALUE: the value for an error line, on that one line; never a secret
  case $1 in
    secrets) printf '(not shown)' ;;
    *) printf '%s' "$2" | tr '\n' ' ' ;;
  esac
}

need() { # NAME...: fails on the first option without a value
  local name value
  for name in "$@"; do
    value=$(variable OPT "$name")
    [ -n "${!value}" ] || fail "missing --$name=... (or $(variable MMRL "$name")); see --help"
  done
}

refuse_secrets() { # a command line is readable by every user of a machine, and is logged
  local argument key
  for argument in ${TRAIN_ARGUMENTS[@]+"${TRAIN_ARGUMENTS[@]}"}; do
    key=$(printf '%s' "${argument%%=*}" | tr '[:upper:]' '[:lower:]')
    if [[ $key =~ (^|[._-])(token|password|passwd|secret|credentials?|(api|access|private)_?key)$ ]]; then
      fail "${argument%%=*}: secrets do not belong on a command line; see 'Secrets' in launch/README.md"
    fi
    case $argument in
      --config=* | --workdir=*)
        fail "${argument%%=*} stands after --; give it to the launcher, before --"
        ;;
      --*) ;;
      *) fail "$(quote "$argument") stands after --; expected flags of mmrl.main, --name=value" ;;
    esac
  done
}

check_private() { # FILE: of NAME=VALUE lines, for its owner's eyes
  [ -f "$1" ] || fail "--env-file=$1: expected a file of NAME=VALUE lines"
  [ -z "$(find "$1" -perm -040 -o -perm -004)" ] ||
    fail "--env-file=$1: others can read it; expected chmod 600"
}

load_environment() { # FILE: exports its lines; the values are seen by no command line
  local line number=0
  check_private "$1"
  while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    case $line in '' | '#'*) continue ;; esac
    [[ $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail "--env-file=$1: line $number is not NAME=VALUE"
    export "${line?}"
  done <"$1"
}

forward() { # COMMAND...: runs it, hands SIGTERM and SIGINT on to it as SIGTERM, returns its status
  local child status=0
  "$@" </dev/null &
  child=$!
  # shellcheck disable=SC2064 # the child's id is wanted as it is now
  trap "kill -TERM $child 2>/dev/null || true" TERM INT
  while :; do
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break # a trapped signal ends `wait`, not the child
  done
  # The status of an interrupted `wait` is the signal's; the child's own is still remembered.
  if [ "$status" -gt 128 ]; then
    status=0
    wait "$child" 2>/dev/null || status=$?
  fi
  trap - TERM INT
  return "$status"
}
