set(RWKV_OP_SOURCES
  ops/op.cpp
  ops/op_table.cpp
)
