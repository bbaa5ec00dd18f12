#!/usr/bin/env bash
# Variables of every training script:
#   MODEL, VISION_TOWER, DATA_PATH, IMAGE_FOLDER, OUTPUT_DIR    as above; a path or a name on the hub
#   PROJECTOR_TYPE, SCALE_FACTOR, IMAGE_SIZE, ASPECT_RATIO      as above; IMAGE_SIZE in pixels, by default the tower's
#   VERSION            conversation template, default   MODEL_MAX_LENGTH  2048 tokens, image tokens included
#                      the one MODEL was trained with; v1 if MODEL is a language model without vision
#   EPOCHS             1                               MAX_STEPS         -1: all of the epochs
#   GLOBAL_BATCH_SIZE  sequences per optimiser step    BATCH_SIZE        sequences per device and pass
#   GRAD_ACCUM         GLOBAL_BATCH_SIZE / (BATCH_SIZE * devices); if set, it overrides GLOBAL_BATCH_SIZE
#   LEARNING_RATE      as above                        PACKING           False; True packs records into sequences
#   PROJECTOR_LR       LEARNING_RATE; if neither is set, LEARNING_RATE's default or less, as suits PROJECTOR_TYPE
#   PRECISION          bf16, or fp16 on GPUs older than Ampere, or fp32 on CPU
#   GRADIENT_CHECKPOINTING  auto, True or False        NUM_WORKERS       data loading processes per device: auto, from
#                                                                        the node's number of processors and devices
#   GROUP_BY_MODALITY_LENGTH  True in stage 2 of LLaVA-1.5: each batch has one modality and similar lengths
#   SAVE_STEPS         500                             SAVE_TOTAL_LIMIT  1 checkpoint is kept
#   REPORT_TO          none, tensorboard or wandb
# Where it runs:
#   CUDA_VISIBLE_DEVICES  GPUs to use (all)            NUM_PROCESSES     processes per node: one per GPU, or 1 on CPU
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT        several nodes: start the same command on each; srun sets these
#   HOSTFILE           several nodes, started from one of them by DeepSpeed over ssh
#   DEEPSPEED_CONFIG   auto, a JSON file, or none, which is the default on CPU
# On GPUs GRADIENT_CHECKPOINTING and DEEPSPEED_CONFIG default to auto: it computes a budget of a GPU's memory, takes
# the fastest of zero2, zero3 and zero3_offload that fits, and recomputes activations only in batches whose activations
# do not fit. If no budget can be computed, all batches recompute them, and DEEPSPEED_CONFIG is as above.
#   PYTHON             the active environment's, or .venv's     DRY_RUN=1   print the command without starting it
# Started again, the same command continues from the last checkpoint. Flags of train_mem.py may follow, and win.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

source "$ROOT/scripts/common.sh"

die() {
  echo "error: $*" >&2
  exit 2
}

require_counts() {  # NAME...: each is a whole number above 0
  local name
  for name; do
    [[ ${!name} =~ ^[1-9][0-9]*$ ]] || die "$name must be a whole number above 0, got '${!name}'."
  done
}

is_ampere() {  # or newer: has bf16 and TF32
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | sort -n | head -n 1)
  [[ ${capability%%.*} -ge 8 ]]
}

default_rate() {  # RATE: used if LEARNING_RATE is not set; then the projector's type may have a lower rate
  [[ -n ${LEARNING_RATE:-} ]] || : "${PROJECTOR_LR:=auto}"
  : "${LEARNING_RATE:=$1}"
}

# Under srun each node has one task, which reads its node rank from SLURM's variables.
read_slurm() {
  if [[ -z ${SLURM_STEP_ID:-} ]]; then
    [[ ${SLURM_JOB_NUM_NODES:-1} == 1 || -n ${NNODES:-}${HOSTFILE:-} ]] ||
      die "SLURM gave $SLURM_JOB_NUM_NODES nodes, but this runs on one: start it with srun --ntasks-per-node=1."
    return
  fi
  [[ $SLURM_STEP_NUM_TASKS == "$SLURM_STEP_NUM_NODES" ]] ||
    die "srun started $SLURM_STEP_NUM_TASKS tasks on $SLURM_STEP_NUM_NODES nodes; use --ntasks-per-node=1." \
      "Each task starts one process per GPU."
  : "${NNODES:=$SLURM_STEP_NUM_NODES}" "${NODE_RANK:=$SLURM_NODEID}"
  : "${MASTER_PORT:=$((20000 + SLURM_JOB_ID % 10000))}"
  if ((NNODES > 1)); then
    : "${MASTER_ADDR:=$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)}"
  fi
}

# Both set LAUNCHER, the command before train_mem.py, and DEVICES, the number of processes on all nodes.
launch_by_hostfile() {
  ((NNODES == 1)) || die "HOSTFILE and NNODES=$NNODES set the same thing; give one of them."
  [[ -f $HOSTFILE ]] || die "HOSTFILE=$HOSTFILE does not exist; write a line 'NAME slots=GPUS' for each node."
  DEVICES=$(awk '!/^#/ && sub(/.*slots=/, "") { sum += $1 } END { print sum + 0 }' "$HOSTFILE")
  ((DEVICES)) || die "HOSTFILE=$HOSTFILE names no GPU; write a line 'NAME slots=GPUS' for each node."
  LAUNCHER=("$PYTHON" -m deepspeed.launcher.runner --hostfile "$HOSTFILE" --master_port "$MASTER_PORT")
  [[ -z ${MASTER_ADDR:-} ]] || LAUNCHER+=(--master_addr "$MASTER_ADDR")
}

launch_by_torchrun() {
  local nodes=(--standalone)
  if ((NNODES > 1)); then
    [[ -n ${NODE_RANK:-} && -n ${MASTER_ADDR:-} ]] ||
      die "NNODES=$NNODES needs NODE_RANK (0 to $((NNODES - 1))) and MASTER_ADDR, node 0's name or address."
    nodes=(--nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT")
  fi
  DEVICES=$((NNODES * NUM_PROCESSES))
  ((NUM_PROCESSES == 1)) || export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # torchrun does, too, with a long warning
  LAUNCHER=("$PYTHON" -m torch.distributed.run "${nodes[@]}" --nproc_per_node "$NUM_PROCESSES")
}

# Sets LAUNCHER, DEVICES, DEEPSPEED_CONFIG, GRADIENT_CHECKPOINTING, PRECISION and TF32.
choose_launcher() {
  local gpus where
  read_slurm
  gpus=$(num_gpus)
  : "${NNODES:=1}" "${NUM_PROCESSES:=$((gpus ? gpus : 1))}" "${MASTER_PORT:=29500}"
  require_counts NNODES NUM_PROCESSES
  ((gpus == 0 || NUM_PROCESSES <= gpus)) || die "NUM_PROCESSES=$NUM_PROCESSES, but there are only $gpus GPUs."
  if [[ -n ${HOSTFILE:-} ]]; then
    launch_by_hostfile
    where="$DEVICES GPUs of $HOSTFILE"
  else
    launch_by_torchrun
    where="$NNODES x $NUM_PROCESSES $( ((gpus)) && echo GPUs || echo "CPU processes")"
  fi
  if [[ -z ${HOSTFILE:-} ]] && ((gpus == 0)); then
    : "${DEEPSPEED_CONFIG:=none}" "${GRADIENT_CHECKPOINTING:=True}" "${PRECISION:=fp32}"
    if [[ $DEEPSPEED_CONFIG == none ]] && ((DEVICES == 1)); then LAUNCHER=("$PYTHON"); fi
  else
    : "${DEEPSPEED_CONFIG:=auto}" "${GRADIENT_CHECKPOINTING:=auto}"
    : "${PRECISION:=$( ((!gpus)) || is_ampere && echo bf16 || echo fp16)}"  # no GPU here: the hosts' are assumed new
    if [[ $PRECISION == bf16 ]]; then TF32=True; fi
  fi
  echo "launch: $where, $PRECISION"
}

# Sets RECIPE to the flags of DeepSpeed and of gradient checkpointing, and prints the memory budget behind them.
choose_recipe() {  # ZERO FLAGS...
  local zero=$1 answer
  shift
  if [[ $DEEPSPEED_CONFIG == auto || $GRADIENT_CHECKPOINTING == auto ]]; then
    if answer=$("$PYTHON" -m llava.train.choose_recipe --num_gpus "$DEVICES" --deepspeed "$DEEPSPEED_CONFIG" \
      --gradient_checkpointing "$GRADIENT_CHECKPOINTING" "$@") && [[ $answer ]]; then
      mapfile -t RECIPE <<< "$answer"
      return
    fi
    [[ $DEEPSPEED_CONFIG != auto ]] || DEEPSPEED_CONFIG=$ROOT/scripts/$zero.json
    [[ $GRADIENT_CHECKPOINTING != auto ]] || GRADIENT_CHECKPOINTING=True
    echo "memory: no budget was computed; DeepSpeed ${DEEPSPEED_CONFIG##*/}, gradient checkpointing" \
      "$GRADIENT_CHECKPOINTING"
  fi
  RECIPE=(--gradient_checkpointing "$GRADIENT_CHECKPOINTING")
  [[ $DEEPSPEED_CONFIG == none ]] || RECIPE+=(--deepspeed "$DEEPSPEED_CONFIG")
}

# Keeps the recipe's global batch on any number of devices. Sets BATCH_SIZE, GRAD_ACCUM and GLOBAL_BATCH_SIZE.
choose_batch() {
  local step below smaller
  require_counts BATCH_SIZE GLOBAL_BATCH_SIZE
  if [[ -z ${GRAD_ACCUM:-} ]]; then
    if ((GLOBAL_BATCH_SIZE < BATCH_SIZE * DEVICES && GLOBAL_BATCH_SIZE % DEVICES == 0)); then
      echo "batch:  BATCH_SIZE=$BATCH_SIZE on $DEVICES devices is more than GLOBAL_BATCH_SIZE=$GLOBAL_BATCH_SIZE;" \
        "reduced to $((GLOBAL_BATCH_SIZE / DEVICES))"
      BATCH_SIZE=$((GLOBAL_BATCH_SIZE / DEVICES))
    fi
    step=$((BATCH_SIZE * DEVICES))
    if ((GLOBAL_BATCH_SIZE % step)); then
      below=$((GLOBAL_BATCH_SIZE / step * step))
      for ((smaller = BATCH_SIZE; smaller && GLOBAL_BATCH_SIZE % (smaller * DEVICES); smaller--)); do :; done
      die "GLOBAL_BATCH_SIZE=$GLOBAL_BATCH_SIZE is not a multiple of BATCH_SIZE=$BATCH_SIZE x $DEVICES devices = $step." \
        "Nearest: GLOBAL_BATCH_SIZE=$((below + step))$( ((!below)) || echo " or $below")$(
          ((!smaller)) || echo ", or BATCH_SIZE=$smaller")."
    fi
    GRAD_ACCUM=$((GLOBAL_BATCH_SIZE / step))
  fi
  require_counts GRAD_ACCUM
  GLOBAL_BATCH_SIZE=$((BATCH_SIZE * DEVICES * GRAD_ACCUM))
  echo "batch:  $GLOBAL_BATCH_SIZE = $BATCH_SIZE a device x $DEVICES devices x $GRAD_ACCUM accumulated"
}

# Sets FLAGS to the flags that all scripts share. Flags of empty variables are left out; the checkpoint decides these.
shared_flags() {
  FLAGS=(
    --model_name_or_path "$MODEL"
    --data_path "$DATA_PATH"
    --image_folder "$IMAGE_FOLDER"
    --output_dir "$OUTPUT_DIR"
    --num_train_epochs "${EPOCHS:-1}"
    --max_steps "${MAX_STEPS:--1}"
    --per_device_train_batch_size "$BATCH_SIZE"
    --gradient_accumulation_steps "$GRAD_ACCUM"
    --save_strategy steps
    --save_steps "${SAVE_STEPS:-500}"
    --save_total_limit "${SAVE_TOTAL_LIMIT:-1}"
    --learning_rate "$LEARNING_RATE"
    --weight_decay 0.
    --warmup_ratio 0.03
    --lr_scheduler_type cosine
    --logging_steps 1
    --model_max_length "${MODEL_MAX_LENGTH:-2048}"
    --dataloader_num_workers "${NUM_WORKERS:-auto}"
    --report_to "${REPORT_TO:-none}"
  )
  local flag value
  for flag in version:VERSION vision_tower:VISION_TOWER mm_projector_type:PROJECTOR_TYPE scale_factor:SCALE_FACTOR \
    tf32:TF32 mm_vision_image_size:IMAGE_SIZE image_aspect_ratio:ASPECT_RATIO mm_projector_lr:PROJECTOR_LR; do
    value=${flag#*:}
    [[ -z ${!value:-} ]] || FLAGS+=("--${flag%:*}" "${!value}")
  done
  case "${PACKING:-False}" in
    True | true | 1) FLAGS+=(--packing True) ;;
    *) [[ -z ${GROUP_BY_MODALITY_LENGTH:-} ]] || FLAGS+=(--group_by_modality_length "$GROUP_BY_MODALITY_LENGTH") ;;
  esac
  case "$PRECISION" in
    bf16 | fp16) FLAGS+=("--$PRECISION" True) ;;
    fp32) ;;
    *) die "PRECISION must be bf16, fp16 or fp32, got '$PRECISION'." ;;
  esac
}

# Starts a launcher, waits for it and exits with its exit code. By itself torchrun would kill its processes 30 s after
# SIGTERM and exit with 1. Instead SIGTERM is sent to the training processes, which take the time they need to save. The
# exit code is then 143, or 0 if the run was complete. Ctrl-C (SIGINT), closing the terminal (SIGHUP) and killing this
# shell with SIGKILL have the same effect. Under nohup SIGHUP does nothing.
run_stoppable() {
  local launcher="" code interrupted=1 stopped=0
  local stop='stopped=1 interrupted=1; if [[ $launcher ]]; then stop_processes_of "$launcher" & fi'
  export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}  # in case SIGTERM also reaches torchrun
  export PET_SIGNALS_TO_HANDLE=SIGTERM  # torchrun would pass SIGINT on, and nothing would be saved
  trap "$stop" TERM INT
  trap '' HUP  # the launcher and its processes inherit this, so that only this shell reacts
  "$@" &
  trap "$stop" HUP
  launcher=$!
  if ((stopped)); then stop_processes_of "$launcher" & fi  # the signal came before `launcher` was set
  exec 9> >(trap '' TERM INT HUP; cat > /dev/null; stop_processes_of "$launcher")  # reads until this shell ends
  while ((interrupted)); do  # a signal ends `wait` early, and its result is then not the launcher's exit code
    interrupted=0 code=0
    wait "$launcher" || code=$?
  done
  ((!stopped || !code)) || code=143
  exit "$code"
}

# Sends SIGTERM to the launcher's processes, or to the launcher if it has none. If it still runs 5 s after they
# have ended, they were only its helpers: then it and the processes that it has started since get SIGTERM.
stop_processes_of() {  # LAUNCHER
  local told grace=5
  # until the launcher runs its own program, it is a copy of this shell, which can lose a signal
  while [[ $(ps -o args= -p "$1" 2> /dev/null) == "$(ps -o args= -p $$ 2> /dev/null || echo none)" ]]; do sleep 0.1; done
  told=$(pgrep -P "$1") || told=$1
  kill -TERM $told 2> /dev/null || true
  while [[ $(ps -o stat= -p "$1" 2> /dev/null) == [!Z]* ]]; do  # it runs, and is not a zombie
    if ((!grace)); then
      kill -TERM $(pgrep -P "$1") "$1" 2> /dev/null || true
      break
    fi
    sleep 1
    kill -0 $told 2> /dev/null || grace=$((grace - 1))
  done
}

launch() {  # ZERO FLAGS...: ZERO is zero2, zero3 or zero3_offload, used if no memory budget can be computed
  local zero=$1
  shift
  # ZeRO-3 cannot partition quantised weights over the ranks.
  if [[ "$* " =~ --bits[\ =][48]\  ]]; then zero=zero2; fi
  choose_launcher
  choose_batch
  shared_flags
  choose_recipe "$zero" "${FLAGS[@]}" "$@"
  local command=("${LAUNCHER[@]}" "$ROOT/llava/train/train_mem.py" "${FLAGS[@]}" "${RECIPE[@]}" "$@")
  if [[ ${DRY_RUN:-0} != 0 ]]; then
    printf '%q ' "${command[@]}"
    echo
  elif ((${#LAUNCHER[@]} == 1)); then
    exec "${command[@]}"
  else
    trap '(($? != 1)) || require_llava' EXIT  # a launcher without torch fails with an unclear message
    run_stoppable "${command[@]}"
  fi
}
