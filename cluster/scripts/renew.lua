-- node, lease in ms, may end others (1) or not (0)
-- -> {} if the lease had run out, else {ms until the lease of another node runs out, or -1}
local node, moment = ARGV[1], now()
if not redis.call('ZSCORE', p .. 'nodes', node) then
    return {}
end
redis.call('ZADD', p .. 'nodes', moment + ARGV[2], node)
if ARGV[3] == '1' then
    for _, other in ipairs(redis.call('ZRANGEBYSCORE', p .. 'nodes', '-inf', moment)) do
        end_node(other)
    end
end
local soonest = -1
for _, other in ipairs(redis.call('ZRANGE', p .. 'nodes', 0, 1)) do
    if other ~= node and soonest < 0 then
        soonest = math.max(0, redis.call('ZSCORE', p .. 'nodes', other) - moment)
    end
end
return {soonest}
