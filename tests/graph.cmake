rwkv_test(graph_test LABEL unit SOURCES unit/graph_test.cpp unit/graph_lanes_test.cpp
  DEPS rwkv_graph)
