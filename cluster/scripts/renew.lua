-- node, lease in ms, may end others (1) or not (0)
-- -> {} if the lease had run out, else {ms until the next lease of another node runs out, or -1; the time by Redis's clock}
local node, moment = ARGV[1], now()
local own = redis.call('ZSCORE', p .. 'nodes', node)
if not own then
    return {}
end
redis.call('ZADD', p .. 'nodes', moment + ARGV[2], node)
if ARGV[3] == '1' and own - moment >= ARGV[2] / 2 then -- else this request was delayed, and so were those of the others
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
return {soonest, moment}
