#!/bin/bash
# Reconstructs a folder with a SLURM job array: each job does its part, all into one output folder, and whichever ends
# last writes the table of all cases. Both folders have to be on a file system that all nodes share.
#
#   sbatch --array=1-20%8 m2s_array.sh MASKS MESHES [options of m2s-run]
#
# makes 20 parts, at most 8 of them at a time. A job that was killed or ran out of time is finished by submitting the
# same line again: what is complete is skipped. For GPUs: sbatch --gres=gpu:1 ... m2s_array.sh MASKS MESHES --device cuda:0
#
#SBATCH --job-name=m2s
#SBATCH --array=1-8
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=m2s-%A_%a.log

set -eu
masks=$1 meshes=$2
shift 2
# It works on as many cores as --cpus-per-task says. exec: SLURM's signal, a minute before the time is up, then reaches m2s-run, which ends in order.
exec m2s-run "$masks" --out "$meshes" --shard auto "$@"
