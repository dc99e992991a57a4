"""Speed, memory and accuracy of pairloss beside what a user would pick instead.

    python -m benchmarks              the table: time and memory of every method, at the usual sizes
    python -m benchmarks.growth       time against N, with the fitted exponent
    python -m benchmarks.accuracy     errors against float64
    python -m benchmarks.ablation     what each idea is worth; the instruction sets and the threads
    python -m benchmarks.compare      micro benchmarks (test_micro.py) against the committed record

Each says with --help what it takes. pair_kl_hinge.py names the cases and the methods, baselines.py
holds the alternatives, logits.py what they run on.

Records of runs are in results/. They are made anew, on a quiet machine, with

    python -m benchmarks --full --json benchmarks/results/cpu-two-cores-amx.json
    python -m benchmarks.growth --json benchmarks/results/growth-two-cores-amx.json
    python -m benchmarks.ablation --json benchmarks/results/ideas-two-cores-amx.json
    python -m benchmarks.ablation processor --json benchmarks/results/ablation-two-cores-amx.json
    python -m benchmarks.compare --save
"""
