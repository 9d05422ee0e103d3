"""Runs the 22 TPC-H queries of queries.sql over Parquet or csv tables and writes each result as json.

    spark-submit --files queries.sql tpch.py TABLES RESULTS [--format parquet|csv] [--rounds N] [Q1 Q6 ...]

TABLES holds a file or folder per table, such as lineitem.parquet. Prints a line per query with its best time.
"""

import argparse
import json
import re
import time
from pathlib import Path

from pyspark.sql import SparkSession

COLUMNS = {
    "customer": "c_custkey long, c_name string, c_address string, c_nationkey long, c_phone string, "
    "c_acctbal decimal(15,2), c_mktsegment string, c_comment string",
    "lineitem": "l_orderkey long, l_partkey long, l_suppkey long, l_linenumber int, l_quantity decimal(15,2), "
    "l_extendedprice decimal(15,2), l_discount decimal(15,2), l_tax decimal(15,2), l_returnflag string, "
    "l_linestatus string, l_shipdate date, l_commitdate date, l_receiptdate date, l_shipinstruct string, "
    "l_shipmode string, l_comment string",
    "nation": "n_nationkey long, n_name string, n_regionkey long, n_comment string",
    "orders": "o_orderkey long, o_custkey long, o_orderstatus string, o_totalprice decimal(15,2), o_orderdate date, "
    "o_orderpriority string, o_clerk string, o_shippriority int, o_comment string",
    "part": "p_partkey long, p_name string, p_mfgr string, p_brand string, p_type string, p_size int, "
    "p_container string, p_retailprice decimal(15,2), p_comment string",
    "partsupp": "ps_partkey long, ps_suppkey long, ps_availqty int, ps_supplycost decimal(15,2), ps_comment string",
    "region": "r_regionkey long, r_name string, r_comment string",
    "supplier": "s_suppkey long, s_name string, s_address string, s_nationkey long, s_phone string, "
    "s_acctbal decimal(15,2), s_comment string",
}


def queries(text):
    """Return query name -> SQL."""
    parts = re.split(r"^-- (Q\d+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tables")
    parser.add_argument("results")
    parser.add_argument("--format", default="parquet", choices=["parquet", "csv"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("only", nargs="*")
    options = parser.parse_intermixed_args()

    spark = SparkSession.builder.appName("TPC-H").getOrCreate()
    for table, columns in COLUMNS.items():
        path = f"{options.tables}/{table}.{options.format}"
        reader = spark.read.schema(columns).option("header", True) if options.format == "csv" else spark.read
        reader.format(options.format).load(path).createOrReplaceTempView(table)
    spark.sql("select count(*) from region").collect()
    wanted = queries((Path(__file__).parent / "queries.sql").read_text())
    best = {}
    for _ in range(options.rounds):
        for name in options.only or wanted:
            started = time.perf_counter()
            spark.sql(wanted[name]).write.mode("overwrite").json(f"{options.results}/{name}")
            taken = time.perf_counter() - started
            best[name] = min(taken, best.get(name, taken))
            print(f"{name} {taken:.2f} s", flush=True)
    print(f"----{len(best)} finished----")
    print("BEST " + json.dumps(best), flush=True)


if __name__ == "__main__":
    main()
