"""What Remit costs, measured: each module is a program, `python -m benchmarks.NAME [--quick] [--json]`.

All of them run on one machine over loopback, are bounded in count and time, and stop what they start.
Numbers are only comparable within one run: everything that is compared is measured interleaved.
"""
