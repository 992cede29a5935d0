"""What brings results back: lineage, and what is built on it.

    lineage.py   lineage as a pure graph: which tasks have to run again for a result, and what is missing

The paper's section 4.2.3. What happens at a death is in csrc/reaper.h; the node core recovers lost results by
itself (csrc/process_lineage.cpp).
"""
